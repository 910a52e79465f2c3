"""TRL's vLLM engine for prompts with images: each image has one place in what vLLM is sent."""

from collections.abc import Sequence
from itertools import groupby

from trl.generation.vllm_generation import VLLMGeneration

from recipes.evaluation.generation import compare_prompts
from recipes.files import InputError


def one_place_each(prompt: Sequence[int], image: int) -> list[int]:
    """Token ids of `prompt` with one of each run of the token `image`, as a chat template writes them."""
    return [token for token, run in groupby(prompt) for _ in ([0] if token == image else run)]


class ImageGeneration(VLLMGeneration):
    """VLLMGeneration whose prompts reach vLLM as it reads them, and are checked to come out as the trainer's.

    TRL 1.16 sends a colocated vLLM prompts in which an image's token already stands once for each patch, and vLLM
    expands the first of them again (https://github.com/huggingface/trl/issues/6294, 6401). Here it gets one token for
    each image, and what it makes of the prompt has to be the trainer's, token by token. A server is sent an image's
    features, of which TRL tells the places: there the numbers of tokens are compared. Either raises InputError where
    they differ. The image's token is not written, since a text with one could not be trained on.

    Images must be in the range of pixels that the engine knows, its model's own, as recipes/data/samples.py scales
    them: no other range reaches it.

        trainer.vllm_generation = ImageGeneration.of(trainer.vllm_generation)
    """

    @classmethod
    def of(cls, generation: VLLMGeneration) -> VLLMGeneration:
        """`generation`, which TRL's trainer has made, as one of this class; unchanged for a model without images."""
        processor = generation.processing_class
        if getattr(processor, "image_token_id", None) is not None:
            generation.__class__ = cls  # TRL's trainer names the class that it makes
            token = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)
            words = generation.generation_kwargs.get("bad_words", [])
            generation.generation_kwargs = generation.generation_kwargs | {"bad_words": [*words, token]}
        return generation

    def generate(self, prompts, images, num_generations, profiler=None):
        """TRL's, of prompts with one place for each image."""
        image, places = self.processing_class.image_token_id, prompts
        if self.mode == "colocate" and images is not None:
            places = [one_place_each(prompt, image) for prompt in prompts]
        output = super().generate(places, images, num_generations, profiler)
        compare_prompts(prompts, output[0])
        return output

    def _place_features(self, features, prompt_ids):
        """TRL's, of features that have as many tokens as their places."""
        result = super()._place_features(features, prompt_ids)
        if result is not None:
            server, trainer = (
                [place["length"] for place in image["mm_placeholders"]["image"]] for image in (features, result)
            )
            if server != trainer:
                raise InputError(
                    f"the vLLM server reads a prompt's images as {server} tokens, the model's processor as {trainer}: "
                    "start it on the same model, without a range of pixels of its own"
                )
        return result
