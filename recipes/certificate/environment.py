"""Rows on the environment: packages, the GPU, and the kernels that the papers' YAMLs ask for."""

from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_flash_attn_2_available

from recipes.certificate.checkpoints import count, gap
from recipes.certificate.laboratory import Absent, Bar, Lab

NO_GPU = "this machine has no GPU that torch sees"


def packages(lab: Lab) -> tuple[str, Bar]:
    """How many packages that the project depends on are installed within its ranges."""
    requirements = [Requirement(line) for line in requires("rrg-recipes") or ()]
    requirements = [requirement for requirement in requirements if not requirement.marker]  # those of no extra
    if not requirements:
        raise Absent("the installed rrg-recipes lists no packages: make setup installs it anew")
    outside = []
    for requirement in requirements:
        try:
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                outside.append(f"{requirement.name} {version(requirement.name)}")
        except PackageNotFoundError:
            outside.append(f"{requirement.name} absent")
    value, bar = count(len(requirements) - len(outside), len(requirements), "packages")
    return f"{value} ({', '.join(outside)})" if outside else value, bar


def gpu(lab: Lab) -> tuple[float, Bar]:
    """CUDA compute capability; bfloat16 and flash attention need 8.0, an A100's."""
    if not torch.cuda.is_available():
        raise Absent(NO_GPU)
    major, minor = torch.cuda.get_device_capability()
    return float(f"{major}.{minor}"), Bar(">=", 8.0)


def attention_gap(lab: Lab, kernel: str, baseline: str, dtype: torch.dtype) -> float:
    """The difference of a small Llama's logits by two attention kernels, two rows of which one is padded left."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=1, **sizes)).to(lab.device, dtype).eval()
    ids = torch.randint(3, 64, (2, 96)).to(lab.device)
    mask = torch.ones_like(ids)
    mask[1, :40] = 0
    logits = []
    for implementation in (kernel, baseline):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits.append(model(ids, attention_mask=mask).logits[mask.bool()])
    return gap(*logits)


def attention(lab: Lab) -> tuple[float, Bar]:
    """PyTorch's own kernels (sdpa) against attention written out (eager), float32."""
    return attention_gap(lab, "sdpa", "eager", torch.float32), Bar("<=", 1e-4)


def flash_attention(lab: Lab) -> tuple[float, Bar]:
    """flash-attn, or its kernel from the Hub, against PyTorch's own, bfloat16."""
    if not torch.cuda.is_available():
        raise Absent(NO_GPU)
    if not is_flash_attn_2_available(kernels_fallback_ok=True):
        raise Absent("neither flash-attn nor its kernel from the Hub: make setup-gpu, or --attn_implementation sdpa")
    return attention_gap(lab, "flash_attention_2", "sdpa", torch.bfloat16), Bar("<=", 0.05)


def adamw_8bit(lab: Lab) -> tuple[float, Bar]:
    """How far bitsandbytes' AdamW with 8-bit moments is from torch's after ten steps, by the way that torch's went."""
    import bitsandbytes

    ends = []
    for optimizer_class in (bitsandbytes.optim.AdamW8bit, torch.optim.AdamW):
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(256, 256, device=lab.device))
        optimizer = optimizer_class([weight], lr=1e-3, weight_decay=0.0)
        for _ in range(10):
            weight.grad = torch.randn(256, 256, generator=generator).add(0.5).to(lab.device)
            optimizer.step()
        ends.append(weight.detach())
    return ((ends[0] - ends[1]).norm() / ends[1].norm()).item(), Bar("<=", 0.05)
