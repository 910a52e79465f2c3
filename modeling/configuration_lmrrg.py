"""Configurations of LM-RRG and of BiomedCLIP, from which its visual feature extractor E comes."""

from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

VIT = SubConfigSpec(config_class=AutoConfig, model_type="vit", init_kwargs={"layer_norm_eps": 1e-6})
OPT_2_7B = {"hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32, "num_attention_heads": 32}
CHOICES = {
    "region_attn_mode": ("image_query", "text_query"),
    "region_pool": ("mean", "text_attn", "cls"),
    "region_text": ("pooled", "tokens"),
    "region_prompt": ("description", "name"),
}
SIDED = ("lung", "upper lung zone", "mid lung zone", "lower lung zone", "hilar structures", "apical zone")
SIDED += ("costophrenic angle", "hemidiaphragm")
MIDLINE = ("trachea", "spine", "right clavicle", "left clavicle", "aortic arch", "mediastinum", "upper mediastinum")
MIDLINE += ("svc", "cardiac silhouette", "cavoatrial junction", "right atrium", "carina", "abdomen")
REGION_NAMES = (*(f"right {name}" for name in SIDED), *(f"left {name}" for name in SIDED), *MIDLINE)


class BiomedCLIPConfig(PreTrainedConfig):
    """Defaults have the published sizes: ViT-B/16 at 224 pixels, PubMedBERT, 256 tokens of text, 512 features.

    `vision_config` (a ViT's) and `text_config` (a BERT's): configurations or their dicts. `projection_dim`: D, of
    patches and texts. `context_length`: the longest text in tokens.
    """

    model_type = "biomedclip"
    sub_configs_defaults: ClassVar = {
        "vision_config": VIT,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    context_length: int = 256

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for part in (self.vision_config, self.text_config):
            part.name_or_path = ""  # else the folder that it was read from would be saved


class LMRRGConfig(PreTrainedConfig):
    """Defaults have the paper's sizes: BiomedCLIP's ViT-B/16, 29 regions, 3 region blocks, VTrans of 3, OPT-2.7B.

    `vision_config`: of BiomedCLIP's image encoder. `text_config`: of the decoder (any causal language model).
    `projection_dim`: D. `region_names`: of the K regions (A-06); `region_texts`: what the cached text features are
    features of, empty where unknown; `region_length`: how many features each region has, 1 unless `region_text` is
    `tokens`.

    Rows of Table 3: `use_global_feature`, `use_region_features`, `region_prompt` (description or name),
    `use_instruction` (which the processor follows) and `lambda_disease`, the weight of the disease loss (0: no head).
    Not in the paper: `lambda_region`, the weight of the region loss, which pulls a region's attention into its box
    (`LMRRGModel.locate`; 0: none). It needs a region feature that weighs patches: text_query, or pool text_attn.

    What the paper leaves open (A-01, A-02): `region_attn_mode` image_query is section 2.1 to the letter, patches as
    the query and the text as the one key, whose softmax is 1 whatever the patch, so that a region's text reaches all
    patches alike; text_query exchanges the roles. `region_pool` makes one feature of a region's N tokens: their mean,
    an average by likeness to the text (text_attn), or the class token's (cls). `region_text` tokens keeps all tokens
    of a text as keys instead of its pooled feature. `region_chunk_size`: as many regions are computed at once (None:
    all); it changes memory and time only.

    `region_heads`, `vtrans_heads` (None: the decoder's), `mlp_ratio`: of the blocks. `freeze_vision`: the image
    encoder gets no gradient. `freeze_extractor`: nothing in E does, and it stays in evaluation mode (section 2.3).
    `head_bias`: whether the decoder's head has a bias. Raises ValueError on a value that none of these allows.
    """

    model_type = "lmrrg"
    sub_configs_defaults: ClassVar = {
        "vision_config": VIT,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="opt", init_kwargs=OPT_2_7B),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 50265
    projection_dim: int = 512
    use_global_feature: bool = True
    use_region_features: bool = True
    use_instruction: bool = True
    lambda_disease: float = 1.0
    lambda_region: float = 0.0
    region_names: list[str] | tuple[str, ...] = REGION_NAMES
    region_texts: list[str] | tuple[str, ...] = ()
    region_length: int = 1
    region_prompt: str = "description"
    region_text: str = "pooled"
    region_attn_mode: str = "image_query"
    region_pool: str = "mean"
    region_chunk_size: int | None = None
    num_region_layers: int = 3
    region_heads: int = 8
    num_vtrans_layers: int = 3
    vtrans_heads: int | None = None
    mlp_ratio: int = 4
    freeze_vision: bool = False
    freeze_extractor: bool = False
    head_bias: bool = False
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not (self.use_global_feature or self.use_region_features):
            raise ValueError("use_global_feature and use_region_features cannot both be false: no image is left")
        if self.region_attn_mode == "text_query" and (self.region_text, self.region_pool) != ("pooled", "mean"):
            raise ValueError("region_attn_mode text_query needs region_text pooled and region_pool mean")
        for name in ("num_region_layers", "num_vtrans_layers", "region_length", "region_chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.check_weights()
        self.vtrans_heads = self.vtrans_heads or self.text_config.num_attention_heads
        for name, width in (("region_heads", self.projection_dim), ("vtrans_heads", self.decoder_width)):
            if width % getattr(self, name):
                raise ValueError(f"{name} ({getattr(self, name)}) must divide the width {width}")
        for part in (self.vision_config, self.text_config):
            part.name_or_path = ""  # else the folder that it was read from would be saved
        self.region_names, self.region_texts = list(self.region_names), list(self.region_texts)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings

    def check_weights(self) -> None:
        """Raises ValueError on weights of losses that are negative, or of a loss that cannot be computed."""
        for name in ("lambda_disease", "lambda_region"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.lambda_region and not (self.use_region_features and self.weighs_patches):
            raise ValueError(
                "lambda_region needs regions that weigh patches, by region_attn_mode text_query or region_pool "
                "text_attn: as the mean of all patches, or as the class token, a region has no attention to pull"
            )

    @property
    def decoder_width(self) -> int:
        """Of the decoder's embeddings, which in OPT-350M is not that of its layers."""
        return getattr(self.text_config, "word_embed_proj_dim", None) or self.text_config.hidden_size

    @property
    def weighs_patches(self) -> bool:
        """Whether a region's feature is read from patches with weights of its text's choice, which sum to 1."""
        return self.region_attn_mode == "text_query" or self.region_pool == "text_attn"

    @property
    def num_visual_tokens(self) -> int:
        """1 + K, less what is switched off: how many places an image has in `input_ids`."""
        return self.use_global_feature + self.use_region_features * len(self.region_names)


BiomedCLIPConfig.register_for_auto_class()
LMRRGConfig.register_for_auto_class()
