"""The networks, transformers-style: importing this package registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel

from .configuration_chexbert import CheXbertConfig
from .configuration_radgraph import RadGraphConfig
from .modeling_chexbert import CheXbertModel
from .modeling_radgraph import RadGraphModel

AutoConfig.register(CheXbertConfig.model_type, CheXbertConfig)
AutoModel.register(CheXbertConfig, CheXbertModel)
AutoConfig.register(RadGraphConfig.model_type, RadGraphConfig)
AutoModel.register(RadGraphConfig, RadGraphModel)

__all__ = ["CheXbertConfig", "CheXbertModel", "RadGraphConfig", "RadGraphModel"]
