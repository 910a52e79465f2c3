"""LLM-RG4 (Wang et al. 2025): frozen encoders, adaptive token fusion (ATF, Eqs. 2 to 8) and a Llama-family decoder.

The fused tokens stand where `input_ids` has placeholders, so the decoder gives one state per position, as TRL wants.
"""

from typing import ClassVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from .assembly import enlarge_vocabulary, load_part, load_tokenizer, set_decoding
from .configuration_llmrg4 import LLMRG4Config
from .processing_llmrg4 import LLMRG4Processor


class PerceiverLayer(nn.Module):
    """One block of a perceiver: queries attend to features, then a linear layer, each with LayerNorm (A-37).

    The paper's adds its input to either step before LayerNorm. The authors' has no residual around attention, whose
    keys include a learned and a zero one, and adds the linear layer's input after LayerNorm.
    """

    def __init__(self, hidden_size: int, feature_size: int, heads: int, dropout: float, authors: bool):
        super().__init__()
        self.authors = authors
        self.attention = nn.MultiheadAttention(
            hidden_size,
            heads,
            dropout=dropout,
            add_bias_kv=authors,
            add_zero_attn=authors,
            kdim=feature_size,
            vdim=feature_size,
            batch_first=True,
        )
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.linear_norm = nn.LayerNorm(hidden_size)

    def forward(self, queries: torch.Tensor, features: torch.Tensor, ignored: torch.Tensor | None) -> torch.Tensor:
        attended, _ = self.attention(queries, features, features, key_padding_mask=ignored, need_weights=False)
        if self.authors:
            attended = self.attention_norm(attended)
            return self.linear_norm(self.linear(attended)) + attended
        queries = self.attention_norm(queries + attended)
        return self.linear_norm(queries + self.linear(queries))


class Perceiver(nn.Module):
    """p(v, q) of Eqs. 5 to 7: queries (n, N, D') read features (n, length, feature_size) and stay (n, N, D')."""

    def __init__(self, config: LLMRG4Config, feature_size: int):
        super().__init__()
        sizes = (config.vision_config.hidden_size, feature_size, config.perceiver_heads, config.perceiver_dropout)
        authors = config.perceiver == "authors"
        self.layers = nn.ModuleList([PerceiverLayer(*sizes, authors) for _ in range(config.num_perceiver_layers)])

    def forward(
        self, features: torch.Tensor, queries: torch.Tensor, ignored: torch.Tensor | None = None
    ) -> torch.Tensor:
        for layer in self.layers:
            queries = layer(queries, features, ignored)
        return queries


class FusionLinear(nn.Linear):
    """The projection after Eq. 8, (.., 3D) to (.., D). It starts as h'_o = h_f where nothing else is present."""


class TokenFusion(nn.Module):
    """ATF: V' is `queries`; p_f, p_l and p_t are the perceivers, each with its projection; `fusion` follows Eq. 8.

    Where `config.fusion` is interleaved, only V', p_f and its projection exist.
    """

    def __init__(self, config: LLMRG4Config):
        super().__init__()
        width, out = config.vision_config.hidden_size, config.text_config.hidden_size

        def projection() -> nn.Module:
            if config.projector == "linear":
                return nn.Linear(width, out)
            hidden = nn.Linear(width, config.projector_hidden_size)
            return nn.Sequential(hidden, nn.GELU(), nn.Linear(config.projector_hidden_size, out), nn.LayerNorm(out))

        self.queries = nn.Parameter(torch.empty(config.num_visual_tokens, width))  # V'
        self.frontal_perceiver, self.frontal_projection = Perceiver(config, width), projection()
        self.fuses, self.reads_padding = config.fusion == "atf", config.perceiver == "authors"
        if self.fuses:
            self.lateral_perceiver, self.lateral_projection = Perceiver(config, width), projection()
            self.prior_perceiver = Perceiver(config, config.prior_config.hidden_size)
            self.prior_projection = projection()
            fusion = FusionLinear(3 * out, out)
            self.fusion = nn.Sequential(fusion, nn.LayerNorm(out)) if config.projector == "mlp" else fusion

    def forward(
        self,
        frontal: torch.Tensor,
        lateral: torch.Tensor | None = None,
        has_lateral: torch.Tensor | None = None,
        prior: torch.Tensor | None = None,
        prior_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The decoder's visual tokens (n, N, D) of n studies, or of n images where the fusion is interleaved.

        `frontal` and `lateral`: features (n, N_I, D'). `prior`: (n, N_T, D''). `has_lateral`: (n,) bool. `prior_mask`:
        (n, N_T) bool, a row without True being a study without a prior report. What is absent counts as zeros after
        its projection whatever its features are, and is computed all the same: every process of a distributed run
        then has a gradient for every parameter.
        """
        dtype = self.queries.dtype
        queries = self.queries.expand(len(frontal), -1, -1)
        frontal_tokens = self.frontal_perceiver(frontal.to(dtype), queries)
        h_f = self.frontal_projection(frontal_tokens)  # Eq. 5
        if not self.fuses:
            return h_f
        h_l = self.lateral_projection(self.lateral_perceiver(lateral.to(dtype), frontal_tokens))  # Eq. 6
        has_prior = prior_mask.any(1)
        ignored = None
        if not self.reads_padding:
            ignored = ~prior_mask
            ignored[:, 0] &= has_prior  # softmax over nothing would be NaN
        h_t = self.prior_projection(self.prior_perceiver(prior.to(dtype), frontal_tokens, ignored))  # Eq. 7
        h_l = h_l.masked_fill(~has_lateral[:, None, None], 0)
        h_t = h_t.masked_fill(~has_prior[:, None, None], 0)
        return self.fusion(torch.cat([h_f, h_l, h_t], dim=-1))  # Eq. 8 and its linear layer: h'_o


class LLMRG4PreTrainedModel(PreTrainedModel):
    config_class = LLMRG4Config
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TokenFusion):
            init.normal_(module.queries, std=0.02)
        elif isinstance(module, FusionLinear):
            weight = module.weight.detach().clone()
            weight[:, : len(weight)] = torch.eye(len(weight))
            init.copy_(module.weight, weight)


class LLMRG4Model(LLMRG4PreTrainedModel):
    """Encoders, token fusion and the decoder without its head.

    The prior report's encoder is there in either fusion, so that a first stage's checkpoint holds it for the second.
    """

    def __init__(self, config: LLMRG4Config):
        super().__init__(config)
        self.vision_encoder = AutoModel.from_config(config.vision_config)
        self.prior_encoder = AutoModel.from_config(config.prior_config, add_pooling_layer=False)
        self.token_fusion = TokenFusion(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        self.train(self.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "LLMRG4Model":
        """As everywhere, but frozen encoders stay without dropout and, after loading too, without gradients."""
        super().train(mode)
        if self.config.freeze_vision:
            self.vision_encoder.eval().requires_grad_(False)
        if self.config.freeze_text:
            self.prior_encoder.eval().requires_grad_(False)
        return self

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The image encoder's states (n, tokens, D') of images (n, 3, height, width), the patches' last.

        Where the encoder is frozen, each image's are needed once, whatever the fusion learns.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_vision):
            return self.vision_encoder(pixel_values.to(self.vision_encoder.dtype)).last_hidden_state

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        prior_input_ids: torch.Tensor | None = None,
        prior_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """What stands for the placeholders: `pooler_output` (n, N, D), or (images, N, D) if interleaved.

        `pixel_values`: (n, v, 3, height, width), v 1 or 2, the frontal image first. `view_mask`: (n, v), which of them
        are real (may be left out where v is 1). `prior_input_ids`, `prior_attention_mask`: (n, length), of the prior
        report's encoder; a row without attention is a study without one. What these masks leave out is not encoded.
        Raises ValueError on other shapes, a study without a frontal image and a prior report that the encoder has no
        positions for.
        """
        if pixel_values.dim() != 5 or pixel_values.shape[1] > 2:
            raise ValueError(f"pixel_values must be (n, 1 or 2, 3, height, width), not {tuple(pixel_values.shape)}")
        n, device = len(pixel_values), pixel_values.device
        if view_mask is None:
            if pixel_values.shape[1] == 2:
                raise ValueError("two views need view_mask, which tells the lateral images from what stands for none")
            view_mask = torch.ones(n, 1, device=device)
        view_mask = view_mask.bool()
        if not view_mask[:, 0].all():
            row = int(view_mask[:, 0].int().argmin())
            raise ValueError(f"study {row} of the batch has no frontal image, which LLM-RG4 starts from (Eq. 5)")
        states = self.encode_images(pixel_values[view_mask])
        size = self.vision_encoder.config.patch_size
        patches = (pixel_values.shape[-2] // size) * (pixel_values.shape[-1] // size)
        images = states[:, -patches:]  # Eqs. 2 and 3, without the class and register tokens before the patches
        if self.config.fusion == "interleaved":
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.token_fusion(images))

        has_lateral = view_mask[:, 1] if view_mask.shape[1] == 2 else view_mask.new_zeros(n)
        lateral = images.new_zeros(n, *images.shape[1:])
        frontal_rows = torch.zeros_like(view_mask)
        frontal_rows[:, 0] = True
        lateral[has_lateral] = images[~frontal_rows[view_mask]]
        prior, prior_mask = self._encode_prior(prior_input_ids, prior_attention_mask, n, device)
        fused = self.token_fusion(images[frontal_rows[view_mask]], lateral, has_lateral, prior, prior_mask)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=fused)

    def _encode_prior(
        self, ids: torch.Tensor | None, mask: torch.Tensor | None, n: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """v_t of Eq. 4, (n, length, D''), zeros where there is no report, and its mask (n, length).

        For the authors' perceiver, which reads padding too, `length` is `prior_length` whatever the batch.
        """
        if ids is None:
            ids = torch.zeros(n, 1, dtype=torch.long, device=device)
            mask = torch.zeros_like(ids)
        longest = self.prior_encoder.config.max_position_embeddings
        if ids.shape[1] > longest:
            raise ValueError(f"a prior report of {ids.shape[1]} tokens is longer than the {longest} of its encoder")
        mask = torch.ones_like(ids).bool() if mask is None else mask.bool()
        if self.config.perceiver == "authors" and (more := self.config.prior_length - ids.shape[1]) > 0:
            ids = nn.functional.pad(ids, (0, more), value=self.prior_encoder.config.pad_token_id)
            mask = nn.functional.pad(mask, (0, more))
        rows = mask.any(1)
        rows[0] |= ~rows.any()  # the encoder runs in every pass, or processes that share its weights would wait
        attention = mask[rows]
        attention[:, 0] |= ~attention.any(1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_text):
            states = self.prior_encoder(ids[rows], attention_mask=attention.long()).last_hidden_state
        prior = states.new_zeros(*mask.shape, states.shape[-1])
        prior[rows] = states
        return prior, mask

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        prior_input_ids: torch.Tensor | None = None,
        prior_attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache=None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """The decoder's states, `last_hidden_state` (n, length, D): one for each position of `input_ids`.

        Images and prior reports are `get_image_features`'; `mm_encoder_outputs` may hold its result under "image", as
        generation has it, which encodes a study once for all beams. Raises ValueError where the placeholders in
        `input_ids` are not as many as the visual tokens.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        features = (mm_encoder_outputs or {}).get("image")
        if features is None and pixel_values is not None:
            features = self.get_image_features(pixel_values, view_mask, prior_input_ids, prior_attention_mask)
        if features is not None:
            tokens = features.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
            places = input_ids == self.config.image_token_id
            if int(places.sum()) != tokens.shape[:2].numel():
                raise ValueError(
                    f"input_ids has {int(places.sum())} placeholders for {tokens.shape[:2].numel()} visual tokens: "
                    "were they cut by max_length, or has the processor another fusion or num_visual_tokens?"
                )
            inputs_embeds = inputs_embeds.masked_scatter(places.unsqueeze(-1), tokens)
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class LLMRG4ForConditionalGeneration(LLMRG4PreTrainedModel, GenerationMixin):
    """LLM-RG4 with its decoder's head.

    For PEFT: `modules_to_save=["token_fusion"]`, and `target_modules` as a regular expression over `language_model`,
    since Dinov2 has a `q_proj` too.
    """

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: LLMRG4Config):
        super().__init__(config)
        self.model = LLMRG4Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        prior_input_ids: torch.Tensor | None = None,
        prior_attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits (n, length, vocabulary) of `LLMRG4Model.forward`'s states, the last `logits_to_keep` (0: all).

        `labels`: (n, length), -100 where nothing is to be predicted; the loss is the decoder's cross-entropy of the
        next token (Eq. 10 with every c_j = 1).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            view_mask=view_mask,
            prior_input_ids=prior_input_ids,
            prior_attention_mask=prior_attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, positions])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @classmethod
    def from_pretrained_parts(
        cls,
        vision: str = "microsoft/rad-dino",
        text: str = "microsoft/BiomedVLP-CXR-BERT-specialized",
        decoder: str = "lmsys/vicuna-7b-v1.5",
        dtype: torch.dtype = torch.float32,
        max_prior_tokens: int = 100,
        **config,
    ) -> tuple["LLMRG4ForConditionalGeneration", LLMRG4Processor]:
        """A fresh LLM-RG4 and its processor from pretrained parts, folders or Hub ids; only the fusion is untrained.

        `text` may be CXR-BERT, whose repository has code of its own: its weights are read into a plain BERT instead.
        `config`: what LLMRG4Config takes. A decoder without padding token pads with its unknown or end token. Raises
        ValueError naming the part that cannot be loaded or is of another kind.
        """
        kinds = {
            "vision": (vision, "an image encoder with patches", lambda config: hasattr(config, "patch_size")),
            "text": (text, "a BERT", lambda config: type(config) in MODEL_FOR_MASKED_LM_MAPPING),
            "decoder": (decoder, "a decoder of the Llama family", _is_llama),
        }
        configs = {part: load_part(part, name, _read_config) for part, (name, _, _) in kinds.items()}
        for part, (name, kind, fits) in kinds.items():
            if not fits(configs[part]):
                raise ValueError(f"{part}={name!r} is a {configs[part].model_type} model, which is not {kind}")
        longest = configs["text"].max_position_embeddings
        if max_prior_tokens > longest:
            raise ValueError(f"max_prior_tokens ({max_prior_tokens}) is more than the {longest} positions of {text}")

        own_code = PreTrainedConfig.get_config_dict(text)[0]["model_type"] == "cxr-bert"
        prior_tokenizer = load_part("text", text, (BertTokenizer if own_code else AutoTokenizer).from_pretrained)
        tokenizer = load_tokenizer(decoder)
        image_processor = load_part("vision", vision, AutoImageProcessor.from_pretrained)
        processor = LLMRG4Processor(image_processor, tokenizer, prior_tokenizer, max_prior_tokens=max_prior_tokens)

        vision_encoder = load_part("vision", vision, AutoModel.from_pretrained, dtype=dtype)
        prior_class = BertModel if own_code else AutoModel
        options = {"config": configs["text"], "dtype": dtype, "add_pooling_layer": False}
        prior_encoder = load_part("text", text, prior_class.from_pretrained, **options)
        language_model = load_part("decoder", decoder, AutoModelForCausalLM.from_pretrained, dtype=dtype)
        enlarge_vocabulary(language_model, len(tokenizer))

        full = LLMRG4Config(
            vision_config=vision_encoder.config,
            prior_config=prior_encoder.config,
            text_config=language_model.config,
            image_token_id=processor.image_token_id,
            dtype=dtype,
            prior_length=max_prior_tokens,
            **config,
        )
        processor.num_visual_tokens, processor.fusion = full.num_visual_tokens, full.fusion
        with torch.device("meta"):
            model = cls(full)
        model.model.token_fusion = TokenFusion(full).to(dtype)
        model.model.vision_encoder = vision_encoder
        model.model.prior_encoder = prior_encoder
        model.model.language_model = language_model.base_model
        model.lm_head = language_model.get_output_embeddings()
        set_decoding(model, tokenizer, processor.image_token_id)
        for module in reversed(list(model.model.token_fusion.modules())):
            model._initialize_weights(module)
        return model.eval(), processor


def _is_llama(config: PreTrainedConfig) -> bool:
    """Whether the head is a plain Linear on the states of a decoder that is built as Llama is."""
    scales = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier")
    plain = all(getattr(config, name, None) is None for name in scales)
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and hasattr(config, "rms_norm_eps") and plain


def _read_config(name: str) -> PreTrainedConfig:
    """A part's configuration; CXR-BERT's, whose type only its own code knows, as a BERT's."""
    values, _ = PreTrainedConfig.get_config_dict(name)
    if values.get("model_type") != "cxr-bert":
        return AutoConfig.from_pretrained(name)
    identity = ("model_type", "architectures", "auto_map")
    return BertConfig.from_dict({key: value for key, value in values.items() if key not in identity})


LLMRG4Model.register_for_auto_class("AutoModel")
LLMRG4ForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
