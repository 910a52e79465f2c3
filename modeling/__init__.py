"""The networks, transformers-style: importing this package registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel

from .configuration_chexbert import CheXbertConfig
from .modeling_chexbert import CheXbertModel

AutoConfig.register(CheXbertConfig.model_type, CheXbertConfig)
AutoModel.register(CheXbertConfig, CheXbertModel)

__all__ = ["CheXbertConfig", "CheXbertModel"]
