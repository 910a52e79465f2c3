"""A model's processor, as every recipe, generate.py and the app load it."""

import re

from accelerate import PartialState
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, ProcessorMixin
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING,
    get_image_processor_class_from_name,
    get_image_processor_config,
)

from recipes.data.images import pixel_range
from recipes.data.model_files import read_adapter
from recipes.files import InputError


def load_processor(
    name: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    needs_template: bool = True,
) -> ProcessorMixin:
    """The processor of the model `name`, a folder or a Hub id, padding on the left whatever its files say.

    An adapter without a processor has its base model's. `min_pixels` and `max_pixels` go to the image processor, None
    leaving the model's own. An `image_processor_type` that transformers does not have, but that is the model's own
    name, as early Qwen2.5-VL checkpoints have it, is read as the one that transformers has for this model, which is
    said in a sentence. Raises InputError where there is none, it cannot be loaded, asks for Gemma 3's pan and scan, or
    has no chat template that `needs_template` asks for.

    Example: `load_processor("Qwen/Qwen2.5-VL-7B-Instruct", max_pixels=1280 * 28 * 28)`.
    """
    adapter = read_adapter(name)
    base = adapter["base_model_name_or_path"] if adapter else name
    pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    options = {"padding_side": "left", "trust_remote_code": trust_remote_code}
    options |= {key: value for key, value in pixels.items() if value}
    sources = {name: revision, base: None} if adapter else {name: revision}
    try:
        config = AutoConfig.from_pretrained(base, revision=sources[base], trust_remote_code=trust_remote_code)
        for source, commit in sources.items():
            learn_image_processor(source, commit, type(config))
            try:
                processor = AutoProcessor.from_pretrained(source, revision=commit, **options)
            except (OSError, ValueError):
                if source != base:
                    continue
                raise
            if isinstance(processor, ProcessorMixin):  # without its files transformers returns the tokenizer alone
                break
        else:
            raise InputError(
                f"{base} has no processor for images (no preprocessor_config.json): copy that of the model that it "
                "was made from into its folder"
            )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        sentence = str(error).split("\n")[0]
        raise InputError(f"the processor of {name} cannot be loaded: {sentence}") from error
    check_pixels(name, processor, pixels)
    if getattr(getattr(processor, "image_processor", None), "do_pan_and_scan", None):
        raise InputError(
            f"{name} asks for pan and scan (do_pan_and_scan in its preprocessor_config.json), which transformers "
            "passes over, and whose crops GRPOTrainer cannot tell from images: set it to null there"
        )
    if needs_template and not processor.chat_template:
        raise InputError(
            f"{base} has no chat template (no chat_template.jinja or chat_template.json): copy that of the model that "
            "it was made from into its folder"
        )
    return processor


def check_pixels(name: str, processor: ProcessorMixin, limits: dict[str, int | None]) -> None:
    """Raises InputError where `limits`, min_pixels and max_pixels, say nothing to `processor`, or contradict it."""
    pixels = pixel_range(processor)
    if pixels is None and any(limits.values()):
        raise InputError(
            f"{name} has no range of pixels that an image is scaled to, as models of the Qwen-VL family have: leave "
            "out min_pixels and max_pixels"
        )
    if pixels and pixels.least > pixels.most:
        raise InputError(f"min_pixels ({pixels.least}) is above max_pixels ({pixels.most}) of {name}: give both")


def learn_image_processor(name: str, revision: str | None, config_class: type) -> None:
    """Lets transformers read an `image_processor_type` that is called after its model and that it does not have.

    `Qwen2_5_VLImageProcessor` is one: transformers 4.49 wrote it before its release, which has
    `Qwen2VLImageProcessor` for this model. Underscores, capitals and an ending Fast make no difference. Any other
    unknown name stays unknown, as another preprocessing may be behind it.
    """
    spelling = get_image_processor_config(name, revision=revision).get("image_processor_type") or ""
    spelling = spelling.removesuffix("Fast")
    if get_image_processor_class_from_name(spelling) is not None or config_class not in IMAGE_PROCESSOR_MAPPING:
        return
    letters = [re.sub(r"[\W_]", "", text).lower() for text in (spelling, f"{config_class.model_type}ImageProcessor")]
    if letters[0] == letters[1]:
        backends = IMAGE_PROCESSOR_MAPPING[config_class]
        today = next(iter(backends.values()))
        # Transformers finds a class by its name among a model's backends, then takes the usual backend of that model.
        AutoImageProcessor.register(
            config_class, image_processor_classes={spelling: type(spelling, (today,), {})}, exist_ok=True
        )
        if PartialState().is_main_process:
            print(f"{name}: its image_processor_type {spelling} is read as {today.__name__}, that of this model today")
