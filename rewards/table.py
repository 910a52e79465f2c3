"""Every reward by its name: what the setting `rewards` of a recipe may hold, and how a reward is made from the others.

A reward of your own needs no entry: `rewards: [my_lab.rewards.mine]` takes any function or object with TRL's signature
by its dotted path, looked for in the working directory too.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import getcwd
from typing import Literal, NamedTuple

from rewards.bleu import make_bleu_reward
from rewards.ce_f1 import make_ce_f1_reward
from rewards.cider import make_cider_reward
from rewards.format import make_format_reward
from rewards.mccs import make_mccs_reward
from rewards.radcliq import make_radcliq_reward, make_semb_part
from rewards.radgraph import make_radgraph_part, make_radgraph_reward
from rewards.rouge import make_rouge_reward
from rewards.severity import SeverityReward

Reward = Callable[..., list[float | None]]


class Material(NamedTuple):
    """What rewards are made of: the run's settings, its labeler, the reference reports of its training split."""

    settings: "RewardArguments"
    labeler: Callable
    references: Sequence[str]


def _radgraph_parser(material: Material) -> Callable:
    from rewards.radgraph_parser import RadGraphParser  # torch, which the lexical rewards do not wait for

    return RadGraphParser(material.settings.radgraph)


def _make_bertscore(material: Material) -> Reward:
    from rewards.bertscore import make_bertscore_reward

    return make_bertscore_reward(material.settings.bertscore, untagged=material.settings.untagged)


def _make_crepe(material: Material) -> Reward:
    from rewards.crepe import make_crepe_reward

    return make_crepe_reward(material.settings.crepe, untagged=material.settings.untagged)


def _make_ratescore(material: Material) -> Reward:
    from rewards.ratescore import make_ratescore_reward

    settings = material.settings
    return make_ratescore_reward(settings.ratescore_ner, settings.ratescore_encoder, untagged=settings.untagged)


def _make_radcliq(material: Material) -> Reward:
    """RadCliQ of the parts that it was fitted on (LM-RRG, section 2.3)."""
    from rewards.bertscore import BERTScore
    from rewards.chexbert import CheXbertLabeler

    settings = material.settings
    return make_radcliq_reward(
        radgraph=make_radgraph_part(_radgraph_parser(material)),
        bertscore=BERTScore(settings.bertscore),
        semb=make_semb_part(CheXbertLabeler(settings.chexbert).embed, lite=False),
        version=settings.radcliq_version,
        transform=settings.reward_transform,
        untagged=settings.untagged,
    )


REWARDS: dict[str, Callable[[Material], Reward]] = {
    "mccs": lambda m: make_mccs_reward(m.settings.margin, m.labeler, untagged=m.settings.untagged),
    "ce_f1": lambda m: make_ce_f1_reward(m.labeler, untagged=m.settings.untagged),
    "positive_f1": lambda m: make_ce_f1_reward(
        m.labeler, label_set="13", empty_match=0.0, untagged=m.settings.untagged, name="positive_f1_reward"
    ),
    "label_fbeta": lambda m: make_ce_f1_reward(
        m.labeler, empty_match=0.0, untagged=m.settings.untagged, name="label_fbeta_reward", beta=m.settings.label_beta
    ),
    "format": lambda m: make_format_reward(),
    "bleu": lambda m: make_bleu_reward(untagged=m.settings.untagged),
    "rouge": lambda m: make_rouge_reward(untagged=m.settings.untagged),
    "cider": lambda m: make_cider_reward(m.references, untagged=m.settings.untagged),
    "bertscore": _make_bertscore,
    "radgraph_lexical": lambda m: make_radgraph_reward(untagged=m.settings.untagged),
    "radgraph": lambda m: make_radgraph_reward(_radgraph_parser(m), untagged=m.settings.untagged),
    "severity": lambda m: SeverityReward(untagged=m.settings.untagged),
    "radcliq_lite": lambda m: make_radcliq_reward(
        version=m.settings.radcliq_version, transform=m.settings.reward_transform, untagged=m.settings.untagged
    ),
    "radcliq": _make_radcliq,
    "crepe": _make_crepe,
    "ratescore": _make_ratescore,
}


@dataclass
class RewardArguments:
    """The settings of a run that concern its rewards, the same ones in every recipe that has rewards."""

    rewards: list[str] = field(
        metadata={
            "help": f"Rewards, added up by reward_weights: {', '.join(REWARDS)}, or the dotted path of a function "
            "with TRL's signature, such as my_lab.rewards.mine."
        }
    )
    labeler: str = field(
        default="lexical",
        metadata={"help": "Labeler of mccs, ce_f1, positive_f1 and label_fbeta: lexical, chexbert or chexbert:MODEL."},
    )
    margin: float = field(default=0.2, metadata={"help": "Margin m of mccs (MRG-R1, Eq. 6)."})
    label_beta: float = field(
        default=2.0,
        metadata={"help": "Beta of label_fbeta: above 1 a missed label costs more than one that is made up."},
    )
    untagged: Literal["whole", "zero"] = field(
        default="whole",
        metadata={"help": "Report of a completion without <report>: the whole text but its reasoning, or none."},
    )
    radcliq_version: Literal["v0", "v1"] = field(
        default="v1", metadata={"help": "Published regression that radcliq and radcliq_lite take."}
    )
    reward_transform: Literal["affine", "exp", "reciprocal"] = field(
        default="affine", metadata={"help": "Function that turns RadCliQ, better when lower, into a reward in [0, 1]."}
    )
    radgraph: str = field(
        default="outputs/radgraph",
        metadata={"help": "RadGraph of radgraph and radcliq: a folder that recipes/convert_radgraph.py wrote."},
    )
    bertscore: str = field(
        default="distilroberta-base", metadata={"help": "Encoder of bertscore and radcliq: a folder or a Hub id."}
    )
    chexbert: str = field(
        default="outputs/chexbert",
        metadata={"help": "CheXbert of radcliq: a folder that recipes/convert_chexbert.py wrote, or a Hub id."},
    )
    crepe: str = field(
        default="outputs/crepe",
        metadata={"help": "CREPE of the reward crepe: a folder of recipes/convert_crepe.py or train_crepe.py."},
    )
    ratescore_ner: str = field(
        default="Angelakeke/RaTE-NER-Deberta",
        metadata={"help": "Entity recogniser of the reward ratescore: a folder or a Hub id."},
    )
    ratescore_encoder: str = field(
        default="FremyCompany/BioLORD-2023-C",
        metadata={"help": "Encoder of entity names of the reward ratescore: a folder or a Hub id."},
    )


def make_rewards(settings: RewardArguments, labeler: Callable, references: Sequence[str]) -> list[Reward]:
    """The rewards that `settings.rewards` names, in its order; those that label share `labeler`.

    `labeler`: n texts to CheXpert states (n, 14). `references`: the reports of the training split. Raises ValueError
    on a name that is neither in `REWARDS` nor the dotted path of something to call, and what a factory raises: OSError
    or ValueError where weights are missing.

    Example:
        >>> from rewards.labelers import LexicalLabeler
        >>> settings = RewardArguments(rewards=["mccs", "format"])
        >>> rewards = make_rewards(settings, LexicalLabeler(), ["The lungs are clear."])
        >>> [reward.__name__ for reward in rewards]
        ['mccs_reward', 'format_reward']
    """
    material = Material(settings, labeler, references)
    return [REWARDS[name](material) if name in REWARDS else import_reward(name) for name in settings.rewards]


def import_reward(path: str) -> Reward:
    """The function or object at a dotted path such as my_lab.rewards.mine. Raises ValueError where there is none."""
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(
            f"there is no reward {path!r}; choose among {', '.join(REWARDS)}, or give the dotted path of a function"
        )
    if getcwd() not in sys.path:  # a script's own folder is there, the working directory is not
        sys.path.insert(0, getcwd())
    try:
        reward = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the reward {path} cannot be imported: {error}") from error
    if not callable(reward) or not hasattr(reward, "__name__"):
        raise ValueError(f"the reward {path} is no function with a name, but {reward!r}")
    return reward
