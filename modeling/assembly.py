"""What LLM-RG4 and LM-RRG share where they are put together from pretrained parts: loading, vocabulary, decoding."""

from collections.abc import Callable

from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

VOCABULARY_MULTIPLE = 64  # rows of an enlarged vocabulary: what tensor cores and tensor parallelism divide evenly


def load_part(part: str, name: str, loader: Callable, **options):
    """`loader(name, **options)`, whose error becomes one sentence."""
    try:
        return loader(name, **options)
    except (OSError, ValueError) as error:
        sentence = str(error).split("\n")[0]
        raise ValueError(f"{part}={name!r} cannot be loaded: {sentence}; name a folder or a Hub id") from error


def load_tokenizer(decoder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a decoder, which pads with its unknown or end token where it has no padding token.

    Raises ValueError where it cannot be loaded or has no end token, since no report would end.
    """
    tokenizer = load_part("decoder", decoder, AutoTokenizer.from_pretrained)
    if tokenizer.eos_token is None:
        raise ValueError(f"decoder={decoder!r} has no end token: set eos_token in its tokenizer_config.json")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def enlarge_vocabulary(decoder: PreTrainedModel, tokens: int) -> None:
    """Gives `decoder` a row for each of a tokenizer's `tokens`, if it has fewer; then as many as a multiple of 64.

    New rows of embeddings and head are the mean of the others (Hewitt 2021), so that none is likelier than an average
    token. `config.vocab_size` is the number of rows.
    """
    if tokens > decoder.config.vocab_size:
        decoder.resize_token_embeddings(tokens, pad_to_multiple_of=VOCABULARY_MULTIPLE)


def set_decoding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> None:
    """Gives `model` generation settings of its own: greedy, ended by the end token of `tokenizer` alone.

    None of its decoder's is taken over. Vicuna's (temperature 0.9 without do_sample) are invalid, and saving would
    fail. BLIP-2's OPT ends at a newline, which reports contain; the chat templates end a report with the tokenizer's
    end token, as LM-RRG's Eq. 2 stops at [EOS]. Placeholders, and rows that no token has, are suppressed.
    """
    text_config = model.config.text_config
    text_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[image_token_id, *range(len(tokenizer), text_config.vocab_size)],
    )
