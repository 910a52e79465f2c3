"""Configuration of LLM-RG4: its three pretrained parts and the adaptive token fusion (ATF) between them."""

from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

FUSIONS = ("atf", "interleaved")
PROJECTORS = ("linear", "mlp")
PERCEIVERS = ("paper", "authors")


class LLMRG4Config(PreTrainedConfig):
    """Defaults have the paper's sizes: RAD-DINO, CXR-BERT, Vicuna 7B and 128 visual tokens.

    `vision_config`, `prior_config`, `text_config`: of the image encoder E_v (Dinov2's architecture), of the prior
    report's encoder E_t (BERT's) and of the decoder (any of the Llama family), or their dicts. `num_visual_tokens`: N.

    `fusion`: `atf` gives a study N tokens whatever it has (Eqs. 5 to 8). `interleaved`, Table 4's comparison, gives N
    tokens to each image, compressed by p_f alone, and leaves the prior report to the decoder's own text; on one image
    it is also the paper's first stage, and its weights are those that `atf` has under the same names.

    `projector`: `linear` is the paper's Linear of Eqs. 5 to 8; `mlp` is the authors' projection, a hidden layer of
    `projector_hidden_size` with GELU, then LayerNorm, and LayerNorm after the fusion. `perceiver`, of which the paper
    says its inputs and output: `paper` adds the query to what it read and masks the padding of prior reports;
    `authors` is their code's, without that residual, with a learned and a zero key beside the features, and a prior
    report is padded to `prior_length` tokens, all of which are read. Their published weights need `authors` and `mlp`
    (recipes/convert_llmrg4.py); `paper` is the default, since padding then changes nothing. `num_perceiver_layers`,
    `perceiver_heads` and `perceiver_dropout` are the authors', which the paper does not give. `freeze_vision` and
    `freeze_text`: the encoders get no gradient and no dropout (Eqs. 2 to 4). Raises ValueError on a value that none
    of these allows.
    """

    model_type = "llmrg4"
    sub_configs_defaults: ClassVar = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2", init_kwargs={"image_size": 518}),
        "prior_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    prior_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    num_visual_tokens: int = 128
    fusion: str = "atf"
    projector: str = "linear"
    projector_hidden_size: int = 2048
    perceiver: str = "paper"
    prior_length: int = 100
    num_perceiver_layers: int = 1
    perceiver_heads: int = 12
    perceiver_dropout: float = 0.1
    freeze_vision: bool = True
    freeze_text: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name, allowed in (("fusion", FUSIONS), ("projector", PROJECTORS), ("perceiver", PERCEIVERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.num_visual_tokens < 1:
            raise ValueError(f"num_visual_tokens must be at least 1, not {self.num_visual_tokens}")
        if self.vision_config.hidden_size % self.perceiver_heads:
            width = self.vision_config.hidden_size
            raise ValueError(f"perceiver_heads ({self.perceiver_heads}) must divide the image encoder's width {width}")
        for part in (self.vision_config, self.prior_config, self.text_config):
            part.name_or_path = ""  # else the folder that it was read from would be saved
        self.tie_word_embeddings = self.text_config.tie_word_embeddings


LLMRG4Config.register_for_auto_class()
