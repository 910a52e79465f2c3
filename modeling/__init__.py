"""The networks, transformers-style: importing this package registers them with the Auto classes."""

import os

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_chexbert import CheXbertConfig
from .configuration_crepe import CrepeConfig
from .configuration_discbert import DiscBertConfig
from .configuration_llmrg4 import LLMRG4Config
from .configuration_lmrrg import BiomedCLIPConfig, LMRRGConfig
from .configuration_radgraph import RadGraphConfig
from .modeling_chexbert import CheXbertModel
from .modeling_crepe import CrepeModel
from .modeling_discbert import DiscBertModel
from .modeling_llmrg4 import LLMRG4ForConditionalGeneration, LLMRG4Model
from .modeling_lmrrg import BiomedCLIPModel, LMRRGForConditionalGeneration, LMRRGModel
from .modeling_radgraph import RadGraphModel
from .processing_llmrg4 import LLMRG4Processor
from .processing_lmrrg import LMRRGProcessor

# A repository with pickled weights alone makes transformers ask the Hub, in a thread, for a bot that converts them.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

AutoConfig.register(CheXbertConfig.model_type, CheXbertConfig)
AutoModel.register(CheXbertConfig, CheXbertModel)
AutoConfig.register(CrepeConfig.model_type, CrepeConfig)
AutoModel.register(CrepeConfig, CrepeModel)
AutoConfig.register(DiscBertConfig.model_type, DiscBertConfig)
AutoModel.register(DiscBertConfig, DiscBertModel)
AutoConfig.register(LLMRG4Config.model_type, LLMRG4Config)
AutoModel.register(LLMRG4Config, LLMRG4Model)
AutoModelForImageTextToText.register(LLMRG4Config, LLMRG4ForConditionalGeneration)
AutoProcessor.register(LLMRG4Config, LLMRG4Processor)
AutoConfig.register(BiomedCLIPConfig.model_type, BiomedCLIPConfig)
AutoModel.register(BiomedCLIPConfig, BiomedCLIPModel)
AutoConfig.register(LMRRGConfig.model_type, LMRRGConfig)
AutoModel.register(LMRRGConfig, LMRRGModel)
AutoModelForImageTextToText.register(LMRRGConfig, LMRRGForConditionalGeneration)
AutoProcessor.register(LMRRGConfig, LMRRGProcessor)
AutoConfig.register(RadGraphConfig.model_type, RadGraphConfig)
AutoModel.register(RadGraphConfig, RadGraphModel)

__all__ = [
    "BiomedCLIPConfig",
    "BiomedCLIPModel",
    "CheXbertConfig",
    "CheXbertModel",
    "CrepeConfig",
    "CrepeModel",
    "DiscBertConfig",
    "DiscBertModel",
    "LLMRG4Config",
    "LLMRG4ForConditionalGeneration",
    "LLMRG4Model",
    "LLMRG4Processor",
    "LMRRGConfig",
    "LMRRGForConditionalGeneration",
    "LMRRGModel",
    "LMRRGProcessor",
    "RadGraphConfig",
    "RadGraphModel",
]
