"""LM-RRG (Zhou et al. 2024), sections 2.1 and 2.2: E, which makes a global and K region features of an image with the
help of text, and G, which turns them into a prompt and writes the report with the decoder of BLIP-2.

The features stand where `input_ids` has placeholders, so the decoder gives one state per position, as TRL wants. E's
text encoder does not learn, so what it makes of the region descriptions is kept in a buffer and it itself is not here.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.clip.modeling_clip import CLIPOutput

from .assembly import enlarge_vocabulary, load_part, load_tokenizer, set_decoding
from .configuration_lmrrg import BiomedCLIPConfig, LMRRGConfig
from .processing_lmrrg import LMRRGProcessor

REGIONS_FILE = Path(__file__).with_name("region_descriptions.json")
STATES = [4] * 13 + [2]  # of CheXpert's 13 findings and of No Finding, which is blank or positive


@dataclass
class LMRRGModelOutput(BaseModelOutputWithPast):
    """As its base, and `disease_logits` (images, 14, 4), `disease_loss` and `region_loss`, scalars, where computed."""

    disease_logits: torch.Tensor | None = None
    disease_loss: torch.Tensor | None = None
    region_loss: torch.Tensor | None = None


@dataclass
class LMRRGOutput(CausalLMOutputWithPast):
    """As its base, and `disease_logits` (images, 14, 4), `disease_loss` and `region_loss`, scalars, where computed."""

    disease_logits: torch.Tensor | None = None
    disease_loss: torch.Tensor | None = None
    region_loss: torch.Tensor | None = None


# BiomedCLIP


class BiomedCLIPModel(PreTrainedModel):
    """BiomedCLIP (Zhang et al. 2023) from transformers' ViT and BERT; recipes/convert_biomedclip.py converts its
    checkpoint. Features are not normalised, as open_clip's `encode_image` and `encode_text` give them."""

    config_class = BiomedCLIPConfig
    base_model_prefix = "biomedclip"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: BiomedCLIPConfig):
        super().__init__(config)
        self.vision_model = AutoModel.from_config(config.vision_config, add_pooling_layer=False)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_model = AutoModel.from_config(config.text_config, add_pooling_layer=False)
        width = config.text_config.hidden_size
        hidden = (width + config.projection_dim) // 2
        self.text_projection = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, config.projection_dim, bias=False)
        )
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.logit_scale)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Projected states (n, 1 + N, D) of class token and patches; `pooler_output` (n, D) is the class token's."""
        states = self.visual_projection(self.vision_model(pixel_values).last_hidden_state)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Projected states (n, length, D) of tokens; `pooler_output` (n, D) is the first one's, F_T of the paper."""
        states = self.text_model(input_ids, attention_mask=attention_mask).last_hidden_state
        states = self.text_projection(states)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> CLIPOutput:
        """Scaled cosines of n images and m texts, `logits_per_image` (n, m), and the unit vectors they are of."""
        images = nn.functional.normalize(self.get_image_features(pixel_values).pooler_output, dim=-1)
        texts = nn.functional.normalize(self.get_text_features(input_ids, attention_mask).pooler_output, dim=-1)
        logits = self.logit_scale.exp() * images @ texts.T
        return CLIPOutput(logits_per_image=logits, logits_per_text=logits.T, image_embeds=images, text_embeds=texts)


# E: region features prompted by text (section 2.1)


class Attention(nn.Module):
    """Multi-head attention of queries (.., L, D) to keys (.., T, D), which are the values too; gives (.., L, D).

    The dimensions before the last two broadcast. `mask` (.., T) bool, False where a key is padding.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = self.query(queries), self.key(keys), self.value(keys)
        leading = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
        q, k, v = (
            x.expand(*leading, *x.shape[-2:]).flatten(0, -3).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (q, k, v)
        )
        if mask is not None:
            mask = mask.expand(*leading, -1).flatten(0, -2)[:, None, None]
        read = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(read.transpose(1, 2).flatten(2)).unflatten(0, leading)

    def log_weights(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Logarithms of the weights that `forward` reads with, float32 (.., heads, L, T); they sum to 1 over keys."""
        q, k = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part, x in ((self.query, queries), (self.key, keys))
        )
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).float().log_softmax(-1)


class Block(nn.Module):
    """Self-attention and feed-forward network, each after LayerNorm and with a residual: a layer of VTrans."""

    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.self_norm, self.self_attention = nn.LayerNorm(width), Attention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        normed = self.self_norm(features)
        features = self.self_attention(normed, normed) + features  # F_SA = SA(LN(F_CA)) + F_CA
        return self.feed_forward(self.feed_forward_norm(features)) + features  # F_FFN = FFN(LN(F_SA)) + F_SA


class RegionBlock(Block):
    """A block of section 2.1 for k regions of n images: features (n, k, N, D), the first time (n, 1, N, D).

    `keys`: the regions' texts (k, T, D), or, where the text is the query, images (n, 1, N, D).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, text_query: bool):
        super().__init__(width, heads, mlp_ratio)
        self.cross_norm, self.cross_attention = nn.LayerNorm(width), Attention(width, heads)
        self.text_query = text_query

    def forward(self, features: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        normed = self.cross_norm(features)
        if self.text_query:  # one query a region: all regions of an image are read at once
            attended = self.cross_attention(normed.transpose(1, 2), keys).transpose(1, 2)
        else:
            attended = self.cross_attention(normed, keys, mask)
        return super().forward(attended + features)  # F_CA = CA(LN(F_I), F_T) + F_I

    def log_attention(self, features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Logarithms of what each region's text, the query, weighs the patches with: (n, heads, k, N)."""
        return self.cross_attention.log_weights(self.cross_norm(features).transpose(1, 2), images).squeeze(1)


class RegionEncoder(GradientCheckpointingLayer):
    """All blocks and the pooling for some regions, which gradient checkpointing recomputes as a whole."""

    def __init__(self, config: LMRRGConfig):
        super().__init__()
        self.text_query, self.pool = config.region_attn_mode == "text_query", config.region_pool
        sizes = (config.projection_dim, config.region_heads, config.mlp_ratio, self.text_query)
        self.blocks = nn.ModuleList([RegionBlock(*sizes) for _ in range(config.num_region_layers)])

    def forward(
        self, images: torch.Tensor, texts: torch.Tensor, mask: torch.Tensor | None = None, with_attention: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """F_region (n, k, D) of images (n, N, D) and texts (k, T, D) of k regions; `mask` (k, T) of real tokens.

        And `with_attention`, else None, the logarithm of what each region weighs the patches with, (n, k, N): text as
        the query, the cross-attention's weights, a mean over blocks and heads; with pool text_attn, that pool's.
        """
        images = images.unsqueeze(1)
        features, keys = (texts[None, :, :1], images) if self.text_query else (images, texts)
        maps = []
        for block in self.blocks:
            if with_attention and self.text_query:
                maps.append(block.log_attention(features, keys))
            features = block(features, keys, mask)
        weights = torch.cat(maps, 1) if maps else None  # of all blocks and heads
        attention = weights.logsumexp(1) - math.log(weights.shape[1]) if maps else None
        if self.pool == "cls":
            return features[:, :, 0], attention
        if self.pool == "mean":
            return features.mean(2), attention
        likeness = torch.einsum("nktd,kd->nkt", features, texts[:, 0]) * texts.shape[-1] ** -0.5
        attention = likeness.float().log_softmax(-1) if with_attention else None
        return torch.einsum("nkt,nktd->nkd", likeness.softmax(-1), features), attention


class VisualExtractor(nn.Module):
    """E: images (n, 3, height, width) become (n, 1 + K, D), F_global and F_region, less what is switched off.

    `with_attention`, which needs `config.weighs_patches`, the second result is what `RegionEncoder` says of all K
    regions, (n, K, N), else None.

    `region_features` (K, T, D) and `region_mask` (K, T): F_T of the regions' texts, and which of them are real.
    """

    def __init__(self, config: LMRRGConfig):
        super().__init__()
        self.config = config
        self.vision_model = AutoModel.from_config(config.vision_config, add_pooling_layer=False)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        if config.use_region_features:
            regions = (len(config.region_names), config.region_length)
            self.register_buffer("region_features", torch.zeros(*regions, config.projection_dim))
            self.register_buffer("region_mask", torch.ones(*regions, dtype=torch.bool))
            self.region_encoder = RegionEncoder(config)
        if config.lambda_disease:
            inputs = config.projection_dim * (config.use_global_feature + config.use_region_features)
            self.disease_head = nn.Linear(inputs, sum(STATES))

    def forward(
        self, pixel_values: torch.Tensor, with_attention: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_vision):
            states = self.vision_model(pixel_values.to(self.vision_model.dtype)).last_hidden_state
            states = self.visual_projection(states)
        patches = states[:, 1:]  # F_I, without the class token
        features = [patches.mean(1, keepdim=True)] if self.config.use_global_feature else []
        attention = None
        if self.config.use_region_features:
            images = states if self.config.region_pool == "cls" else patches
            regions, attention = self.encode_regions(images, with_attention)
            features.append(regions)
        return torch.cat(features, dim=1), attention

    def encode_regions(
        self, images: torch.Tensor, with_attention: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """F_region (n, K, D) of the projected states (n, N, D) of n images, `region_chunk_size` regions at once.

        And, `with_attention`, the regions' log attention over patches (n, K, N), else None.
        """
        size = self.config.region_chunk_size or len(self.region_features)
        features, maps = [], []
        for start in range(0, len(self.region_features), size):
            chunk = slice(start, start + size)
            mask = self.region_mask[chunk] if self.config.region_length > 1 else None
            regions, attention = self.region_encoder(images, self.region_features[chunk], mask, with_attention)
            features.append(regions)
            maps.append(attention)
        return torch.cat(features, dim=1), torch.cat(maps, dim=1) if with_attention else None

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (n, 14, 4) of CheXpert's states from `forward`'s features, before VTrans (A-09).

        F_global and the mean of F_region are read together. The two states that No Finding lacks have the smallest
        number of their type, so probability 0.
        """
        parts = [features[:, :1]] if self.config.use_global_feature else []
        if self.config.use_region_features:
            parts.append(features[:, self.config.use_global_feature :].mean(1, keepdim=True))
        logits = self.disease_head(torch.cat(parts, dim=-1).squeeze(1)).float()
        padded = nn.functional.pad(logits, (0, 4 - STATES[-1]), value=torch.finfo(logits.dtype).min)
        return padded.unflatten(-1, (len(STATES), 4))


class VisualTransfer(nn.Module):
    """From E's features (n, V, D) to the decoder's width (A-03), then VTrans, Eq. 1, which keeps it.

    It has no positions: the decoder has its own, and a region's feature knows its text.
    """

    def __init__(self, config: LMRRGConfig):
        super().__init__()
        width = config.decoder_width
        self.projection = nn.Linear(config.projection_dim, width)
        sizes = (width, config.vtrans_heads, config.mlp_ratio)
        self.vtrans = nn.Sequential(*(Block(*sizes) for _ in range(config.num_vtrans_layers)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.vtrans(self.projection(features))


class LMRRGPreTrainedModel(PreTrainedModel):
    config_class = LMRRGConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class LMRRGModel(LMRRGPreTrainedModel):
    """E, VTrans and the decoder without its head."""

    def __init__(self, config: LMRRGConfig):
        super().__init__(config)
        self.visual_extractor = VisualExtractor(config)
        self.visual_transfer = VisualTransfer(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        self.train(self.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "LMRRGModel":
        """As everywhere, but what is frozen has no dropout and, after loading too, no gradients."""
        super().train(mode)
        if self.config.freeze_extractor:
            self.visual_extractor.eval().requires_grad_(False)
        elif self.config.freeze_vision:
            self.visual_extractor.vision_model.eval().requires_grad_(False)
            self.visual_extractor.visual_projection.requires_grad_(False)
        return self

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What E makes of images (n, 3, height, width): (n, 1 + K, D), which may stand for them everywhere.

        `forward` and `generate` take either as `pixel_values`. Stage 2, where E is frozen, needs each image's once.
        """
        return self._extract(pixel_values)[0]

    def _extract(
        self, pixel_values: torch.Tensor, with_attention: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if pixel_values.dim() != 4:
            raise ValueError(f"pixel_values must be (n, 3, height, width), not {tuple(pixel_values.shape)}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_extractor):
            return self.visual_extractor(pixel_values, with_attention)

    def get_image_features(
        self, pixel_values: torch.Tensor, region_attention: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """What stands for the placeholders: `pooler_output` (n, 1 + K, width of the decoder), VTrans's features.

        `pixel_values`: images (n, 3, height, width), or what `encode_images` made of them, which is in any case
        `last_hidden_state`. `region_attention`: `attentions` is then the logarithm, (n, K, N), of what each region
        weighs the N patches with, of images only. Raises ValueError on other shapes, and where regions weigh none.
        """
        attention = None
        if region_attention:
            if not (self.config.use_region_features and self.config.weighs_patches):
                raise ValueError(
                    "regions weigh patches with region_attn_mode text_query or region_pool text_attn only"
                )
            features, attention = self._extract(pixel_values, with_attention=True)
        else:
            features = pixel_values if pixel_values.dim() == 3 else self.encode_images(pixel_values)
        if features.shape[1:] != (self.config.num_visual_tokens, self.config.projection_dim):
            expected = f"(n, {self.config.num_visual_tokens}, {self.config.projection_dim})"
            raise ValueError(f"encoded images must be {expected}, not {tuple(features.shape)}")
        prefix = self.visual_transfer(features.to(self.visual_transfer.projection.weight.dtype))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=prefix, attentions=attention)

    def locate(self, attention: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
        r"""L_region, a scalar: how far regions' attention is from their boxes. It is ours, not the paper's.

        With a_rn the weight of region r on patch n (sum_n a_rn = 1) and c_rn in [0, 1] how much of the patch its box
        covers, the mass inside the box is m_r = sum_n a_rn c_rn, and

            L_region = -1 / |R| sum_{r in R} log m_r,    R: the regions of all images that have a box.

        c is divided by its largest value of each region (`LMRRGProcessor.cover_patches`), so that L_region is 0 just
        where each region weighs nothing but the patches that its box covers most, even if it is smaller than one.
        With logits z of the weights dL/dz_rn = a_rn (1 - c_rn / m_r) / |R|, whatever c is multiplied by: a step raises
        patches with more cover than the mass. A region without a box has neither loss nor gradient.

        `attention`: log a (n, K, N), float32; `cover`: c (n, K, N), rows of zeros for no box. Raises ValueError where
        their shapes differ. a is of text_query the cross-attention's weights, text over patches, a mean over blocks
        and heads; with image_query and the pool text_attn the weights of that pool. With image_query the
        cross-attention itself cannot serve: it sums to 1 over the text, and says nothing between patches.
        """
        if attention.shape != cover.shape:
            raise ValueError(f"region_cover must be {tuple(attention.shape)}, not {tuple(cover.shape)}")
        boxed = cover.amax(-1) > 0
        mass = (attention[boxed] + cover[boxed].float().log()).logsumexp(-1)
        return -mass.sum() / boxed.sum().clamp(min=1)

    def _classify(
        self, features: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Disease logits and L_disease, the mean cross-entropy of the known labels."""
        if not self.config.lambda_disease:
            return None, None
        logits = self.visual_extractor.classify(features)
        if labels is None:
            return logits, None
        if labels.shape != logits.shape[:2] or (labels[:, -1] >= STATES[-1]).any():
            raise ValueError(
                f"disease_labels must be CheXpert states ({len(features)}, 14), the last (No Finding) 0, 1 or -100"
            )
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return logits, loss / (labels != -100).sum().clamp(min=1)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache=None,
        inputs_embeds: torch.Tensor | None = None,
        disease_labels: torch.Tensor | None = None,
        region_cover: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> LMRRGModelOutput:
        """The decoder's states, `last_hidden_state` (n, length, width): one for each position of `input_ids`.

        `pixel_values`: as of `get_image_features`; `mm_encoder_outputs` may hold its result under "image", as
        generation has it, which encodes an image once for all beams. `disease_labels`: (images, 14) CheXpert states in
        CheXbert's order and codes, -100 where unknown; without them there is no `disease_loss`. `region_cover`:
        (images, K, N), as of `locate`; without it, or with `lambda_region` 0, there is no `region_loss`. Raises
        ValueError where the placeholders in `input_ids` are not as many as the features.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        features = (mm_encoder_outputs or {}).get("image")
        if features is None and pixel_values is not None:
            boxed = self.config.lambda_region > 0 and region_cover is not None
            features = self.get_image_features(pixel_values, region_attention=boxed)
        disease_logits = disease_loss = region_loss = None
        if features is not None:
            disease_logits, disease_loss = self._classify(features.last_hidden_state, disease_labels)
            if features.attentions is not None:
                region_loss = self.locate(features.attentions, region_cover)
            prefix = features.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
            places = input_ids == self.config.image_token_id
            if int(places.sum()) != prefix.shape[:2].numel():
                raise ValueError(
                    f"input_ids has {int(places.sum())} placeholders for {prefix.shape[:2].numel()} visual features: "
                    "were they cut by max_length, or has the processor another num_visual_tokens?"
                )
            inputs_embeds = inputs_embeds.masked_scatter(places.unsqueeze(-1), prefix)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return LMRRGModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            disease_logits=disease_logits,
            disease_loss=disease_loss,
            region_loss=region_loss,
        )


class LMRRGForConditionalGeneration(LMRRGPreTrainedModel, GenerationMixin):
    """LM-RRG with its decoder's head.

    For PEFT: `target_modules` as a regular expression over `language_model`, since the ViT has a `q_proj` too, and
    `modules_to_save=["visual_extractor", "visual_transfer"]` (in stage 2 the second alone).
    """

    def __init__(self, config: LMRRGConfig):
        super().__init__(config)
        self.model = LMRRGModel(config)
        self.lm_head = nn.Linear(config.decoder_width, config.text_config.vocab_size, bias=config.head_bias)
        embeddings = self.model.get_input_embeddings()
        [name] = [name for name, module in self.named_modules() if module is embeddings]
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}  # any decoder's, and each has its own name
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        disease_labels: torch.Tensor | None = None,
        region_cover: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> LMRRGOutput:
        """Logits (n, length, vocabulary) of `LMRRGModel.forward`'s states, the last `logits_to_keep` (0: all).

        `loss`, where `labels` (n, length; -100: nothing to predict) are given: L_report, the cross-entropy of the next
        token, and, where `disease_labels` are given too, + `lambda_disease` x `disease_loss` (section 2.4), and with
        `region_cover` + `lambda_region` x `region_loss`. TRL's own loss is L_report alone: it takes `base_model`'s
        states, whose output has the two others.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            disease_labels=disease_labels,
            region_cover=region_cover,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, positions])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs)
            if outputs.disease_loss is not None:
                loss = loss + self.config.lambda_disease * outputs.disease_loss
            if outputs.region_loss is not None:
                loss = loss + self.config.lambda_region * outputs.region_loss
        return LMRRGOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            disease_logits=outputs.disease_logits,
            disease_loss=outputs.disease_loss,
            region_loss=outputs.region_loss,
        )

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """E, which stage 2 freezes (section 2.3)."""
        return self.model.visual_extractor

    @classmethod
    def from_pretrained_parts(
        cls,
        biomedclip: str,
        decoder: str = "Salesforce/blip2-opt-2.7b",
        region_descriptions: str | Path = REGIONS_FILE,
        dtype: torch.dtype = torch.float32,
        **config,
    ) -> tuple["LMRRGForConditionalGeneration", LMRRGProcessor]:
        """A fresh LM-RRG and its processor from pretrained parts; region blocks, VTrans and disease head are new.

        `biomedclip`: folder or Hub id of a converted BiomedCLIP. `decoder`: a BLIP-2, whose language model is taken,
        or any causal language model. `region_descriptions`: a JSON list of {name, description}; default: this
        project's 29. `config`: what LMRRGConfig takes. A decoder without padding token pads with its unknown or end
        token. Raises ValueError naming the part that cannot be loaded or is of another kind.
        """
        prompt, region_text = config.get("region_prompt", "description"), config.get("region_text", "pooled")
        regions = read_regions(region_descriptions)
        clip, clip_tokenizer = load_biomedclip(biomedclip)
        image_processor = load_part("biomedclip", biomedclip, AutoImageProcessor.from_pretrained)
        tokenizer = load_tokenizer(decoder)
        processor = LMRRGProcessor(image_processor, tokenizer, use_instruction=config.get("use_instruction", True))
        language_model = _load_decoder(decoder, dtype)
        enlarge_vocabulary(language_model, len(tokenizer))
        head = language_model.get_output_embeddings()

        texts = [region["name" if prompt == "name" else "description"] for region in regions]
        features, mask = encode_texts(clip, clip_tokenizer, texts, region_text)
        full = LMRRGConfig(
            vision_config=clip.config.vision_config,
            text_config=language_model.config,
            image_token_id=processor.image_token_id,
            projection_dim=clip.config.projection_dim,
            region_names=[region["name"] for region in regions],
            region_texts=texts,
            region_length=features.shape[1],
            head_bias=head.bias is not None,
            dtype=dtype,
            **config,
        )
        processor.num_visual_tokens = full.num_visual_tokens
        with torch.device("meta"):
            model = cls(full)
        extractor = model.model.visual_extractor
        extractor.vision_model, extractor.visual_projection = clip.vision_model, clip.visual_projection
        if full.use_region_features:
            extractor.region_features, extractor.region_mask = features, mask
            extractor.region_encoder = RegionEncoder(full)
        if full.lambda_disease:
            extractor.disease_head = nn.Linear(extractor.disease_head.in_features, extractor.disease_head.out_features)
        model.model.visual_transfer = VisualTransfer(full)
        for part in ("region_encoder", "disease_head"):
            if hasattr(extractor, part):
                model._initialize_all(getattr(extractor, part))
        model._initialize_all(model.model.visual_transfer)
        extractor.to(dtype)
        model.model.visual_transfer.to(dtype)
        model.model.language_model = language_model.base_model
        model.lm_head = head
        set_decoding(model, tokenizer, processor.image_token_id)
        return model.eval(), processor

    def _initialize_all(self, part: nn.Module) -> None:
        for module in reversed(list(part.modules())):
            self._initialize_weights(module)


def read_regions(file: str | Path) -> list[dict[str, str]]:
    """The regions of a JSON file: a list of objects with `name` and `description`; ValueError naming what is wrong."""
    try:
        regions = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"region_descriptions={str(file)!r} cannot be read as JSON ({reason})") from error
    if not isinstance(regions, list) or not regions:
        raise ValueError(f"{file} must be a JSON list of regions, each with name and description")
    for number, region in enumerate(regions):
        for key in ("name", "description"):
            text = region.get(key) if isinstance(region, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"region {number} of {file} needs a {key} that is a text")
    names = [region["name"] for region in regions]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{file} has the region {repeated[0]!r} more than once")
    return regions


@torch.no_grad()
def encode_texts(
    clip: BiomedCLIPModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], region_text: str = "pooled"
) -> tuple[torch.Tensor, torch.Tensor]:
    """F_T of K texts: features (K, T, D) and their mask (K, T) bool; T is 1 (pooled) or the longest text's (tokens).

    Raises ValueError where a text is longer than the encoder reads.
    """
    encoded = tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
    lengths = encoded["attention_mask"].sum(1)
    if (longest := int(lengths.max())) > clip.config.context_length:
        text = texts[int(lengths.argmax())]
        raise ValueError(
            f"the region text {text[:60]!r}... has {longest} tokens, more than the {clip.config.context_length} "
            "that BiomedCLIP reads"
        )
    states = clip.eval().get_text_features(encoded["input_ids"], encoded["attention_mask"]).last_hidden_state
    length = states.shape[1] if region_text == "tokens" else 1  # the first token's is the pooled feature
    return states[:, :length].clone(), encoded["attention_mask"][:, :length].bool()


def load_biomedclip(name: str) -> tuple[BiomedCLIPModel, PreTrainedTokenizerBase]:
    """A converted BiomedCLIP in float32 and its tokenizer; ValueError where `name` is none."""
    model_type = load_part("biomedclip", name, PreTrainedConfig.get_config_dict)[0].get("model_type", "open_clip")
    if model_type != BiomedCLIPConfig.model_type:
        raise ValueError(
            f"biomedclip={name!r} is a {model_type} model; convert BiomedCLIP with recipes/convert_biomedclip.py and "
            "name the folder"
        )
    model = load_part("biomedclip", name, BiomedCLIPModel.from_pretrained, dtype=torch.float32)
    return model, load_part("biomedclip", name, AutoTokenizer.from_pretrained)


def _load_decoder(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model that `name` is, or the one of a BLIP-2."""
    config = load_part("decoder", name, AutoConfig.from_pretrained)
    blip = config.model_type == "blip-2"
    text = config.text_config if blip else config
    if text.is_encoder_decoder:
        raise ValueError(
            f"decoder={name!r} is an encoder-decoder ({text.model_type}); LM-RRG needs a causal language model, such "
            "as Salesforce/blip2-opt-2.7b"
        )
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"decoder={name!r} is a {text.model_type} model, which is no causal language model")
    from transformers import Blip2ForConditionalGeneration  # 0.4 s that few need

    model = load_part(
        "decoder", name, (Blip2ForConditionalGeneration if blip else AutoModelForCausalLM).from_pretrained, dtype=dtype
    )
    model = (model.language_model if blip else model).eval()
    ids = torch.arange(4)[None]
    with torch.no_grad():
        head = model.get_output_embeddings()(model.base_model(ids).last_hidden_state)
        if not torch.allclose(head, model(ids).logits):
            raise ValueError(
                f"decoder={name!r} is a {text.model_type} model whose logits are not one linear layer of its states"
            )
    return model


BiomedCLIPModel.register_for_auto_class("AutoModel")
LMRRGModel.register_for_auto_class("AutoModel")
LMRRGForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
