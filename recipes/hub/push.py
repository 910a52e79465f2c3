"""The Hub: what may be public, and pushes of a checkpoint's or a data set's own files, of one commit each.

A push is refused before anything leaves the machine where the data's sources forbid it. Files go up first, where
nobody sees them, and one commit then shows them all: a push that breaks off leaves the repository as it was.
"""

import fnmatch
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from httpx2 import HTTPError
from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetInfo,
    HfApi,
    ModelInfo,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from recipes.data.privacy import (
    FREE,
    FREE_FOR_WEIGHTS,
    UNKNOWN,
    check_trackers,
    is_credentialed,
    normalise,
    private_among,
)
from recipes.data.sources import OPENI
from recipes.files import InputError, replacing
from recipes.hub.model_card import card_for_push

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
CHECKPOINT = (  # no training_args.bin, optimizer.pt or other pickle, no logs, which hold reports
    *("*.safetensors", "*.safetensors.index.json", "*config.json", "*.py"),
    *_TOKENIZER,
    *(f"*_tokenizer/{name}" for name in _TOKENIZER),  # of a processor with two, as LLM-RG4's
    "additional_chat_templates/*.jinja",
    *("trainer_state.json", "results.json", "metrics.json", "README.md"),
)


@dataclass(frozen=True)
class Repository:
    """A repository that exists and has the wanted visibility; `api` carries the token."""

    api: HfApi
    name: str
    kind: str  # "model" or "dataset"
    public: bool
    sources: tuple[str, ...]
    retry_command: str  # completes a push that failed


# --- where data come from ------------------------------------------------------------------------------------------


def sources_of(rows: Dataset | dict[str, Dataset] | None, *starts: str | None) -> list[str]:
    """The sources of a run: those of its rows, of one split or of several, and of the checkpoints that it starts from.

    A start is a folder or a Hub id, or None. `unknown` is among them where rows name no source, and where a folder
    does not tell what its weights were trained on. A model of the Hub without a run_config.json adds nothing.
    """
    sources: set[str] = set()
    for split in rows.values() if isinstance(rows, dict) else filter(None, [rows]):
        names = split.unique("source") if "source" in split.column_names else [None]
        sources |= {name if normalise(name) != UNKNOWN else UNKNOWN for name in names}
    for start in filter(None, starts):
        sources |= set(_sources_of_checkpoint(start))
    return sorted(sources)


def _sources_of_checkpoint(name: str) -> list[str]:
    if Path(name).is_dir():
        file = _find_run_config(Path(name))
        return read_sources(file) if file else [UNKNOWN]
    try:
        return read_sources(Path(hf_hub_download(name, "run_config.json")))
    except RemoteEntryNotFoundError:
        return []
    except HFValidationError:  # neither a folder nor a name that the Hub could have: whoever loads it says so
        return [UNKNOWN]
    except (HTTPError, OSError):  # out of reach: what it would tell is not known, or was seen before
        return [] if try_to_load_from_cache(name, "run_config.json") is _CACHED_NO_EXIST else [UNKNOWN]


def _find_run_config(folder: Path) -> Path | None:
    """The run_config.json of a checkpoint; of a step's, `checkpoint-5`, it lies above."""
    folder = folder.resolve()
    places = [folder, *([folder.parent] if "checkpoint-" in folder.name else [])]
    return next((place / "run_config.json" for place in places if (place / "run_config.json").is_file()), None)


def read_sources(run_config: Path) -> list[str]:
    """The sources in a run_config.json; `unknown` where it was written before they were noted, or by somebody else."""
    names = json.loads(run_config.read_text()).get("sources") or [UNKNOWN]
    return [name if normalise(name) != UNKNOWN else UNKNOWN for name in names]


def check_allowed(name: str, kind: str, sources: Iterable[str], public: bool, because: str | None) -> None:
    """Raises InputError where a push is to be `public` and its sources forbid it, or allow it `because` of nothing."""
    if not public:
        return
    sources = list(sources)
    if kind == "dataset" and OPENI.name in map(normalise, sources):
        raise InputError(
            f"{name}: Open-i's reports are under CC BY-NC-ND 4.0, and what is built from them is changed: it is never "
            "published; leave --public_because out for a private push"
        )
    if because:
        return
    for source in private_among(sources, weights=kind == "model"):
        if is_credentialed(source):
            raise InputError(
                f"{name} would be public, and PhysioNet's credentialed licence forbids to share what is made of "
                f'{source}: push it private, or say with --public_because "..." why this one may be public'
            )
        if source == UNKNOWN:
            raise InputError(
                f"{name} would be public, and what some of its data are is not known (no source is named): push it "
                'private, or say with --public_because "..." why it may be public'
            )
        free = ", ".join(FREE_FOR_WEIGHTS if kind == "model" else FREE)
        raise InputError(
            f"{name} would be public, and {source!r} is not among the sources known to be free ({free}): push it "
            'private, or say with --public_because "..." why it may be public'
        )


# --- pushes --------------------------------------------------------------------------------------------------------


@contextmanager
def hub_errors_as_input_errors(name: str, advice: str) -> Iterator[None]:
    """Turns what the Hub or the network says about the repository `name` into one InputError that ends in `advice`."""
    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = error
        while not isinstance(cause, (HfHubHTTPError, OfflineModeIsEnabled)) and isinstance(
            cause.__cause__, (HTTPError, OSError)
        ):
            cause = cause.__cause__  # an upload's error wraps the answer
        raise InputError(f"{name}: {describe_hub_error(cause, name)}; {advice}") from error


def describe_hub_error(error: Exception, name: str) -> str:
    """What the Hub's `error` about the repository `name` means, and what to do, in words of one sentence."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    message = getattr(error, "server_message", None) or ""
    owner = name.rpartition("/")[0] or "your name"
    if isinstance(error, HFValidationError):
        return f"that is no name of a repository, which is NAME/x ({' '.join(str(error).split())})"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to push"
    if status == 401:
        return "the Hub does not know you: log in with `hf auth login`, or set HF_TOKEN to a valid token"
    if status == 403:
        return (
            f"your token may not write there: take one with write access to {owner} "
            f"(huggingface.co/settings/tokens), or name a repository of your own ({message or 'status 403'})"
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"there is no such repository, or your token may not see it: check the name and the rights on {owner}"
    if status == 409:
        return f"the Hub sees a conflict ({message or 'status 409'}): another push is under way, or the name is taken"
    if status == 412:
        return "somebody changed the repository while this push was under way"
    if status is not None:
        return f"the Hub answered with status {status}" + (f" ({message})" if message else "")
    if isinstance(error, HTTPError):
        return f"the connection to the Hub failed ({str(error) or type(error).__name__})"
    return " ".join(str(error).split())


def open_repository(
    name: str,
    kind: str,
    sources: Iterable[str],
    public: bool = False,
    because: str | None = None,
    token: str | None = None,
    retry_command: str = "the same command again completes it",
) -> Repository:
    """Makes the repository `name` of `kind` "model" or "dataset" where there is none, private unless `public`.

    Raises InputError where `sources` may not be public, where the repository is public and is not wanted so, and where
    the Hub refuses or cannot be reached.
    """
    sources = tuple(sorted(sources))
    check_allowed(name, kind, sources, public, because)
    api = HfApi(token=token)
    with hub_errors_as_input_errors(name, "nothing was pushed"):
        name = api.create_repo(name, repo_type=kind, private=not public, exist_ok=True).repo_id
        repository = Repository(api, name, kind, public, sources, retry_command)
        _check_visibility(repository)
    return repository


def _check_visibility(repository: Repository) -> ModelInfo | DatasetInfo:
    """What the Hub says of the repository; InputError where everybody would see what must be private."""
    info = repository.api.repo_info(repository.name, repo_type=repository.kind)
    if not info.private and not repository.public:
        never = repository.kind == "dataset" and OPENI.name in map(normalise, repository.sources)
        raise InputError(
            f"{repository.name} is public, and would hold what is made of {', '.join(repository.sources)}: make it "
            "private in its settings on the Hub"
            + ("" if never else ', or say with --public_because "..." why this push may be public')
        )
    return info


def push_files(repository: Repository, files: dict[str, Path], patterns: Iterable[str], message: str) -> str:
    """Uploads `files`, local path by path in the repository, and shows them in one commit; returns its URL.

    Files in the repository that fit `patterns` and are not among `files` go with the same commit: they are of an
    earlier push. Raises InputError where the Hub refuses, or somebody else committed meanwhile.
    """
    with hub_errors_as_input_errors(repository.name, f"nothing half-pushed is visible; {repository.retry_command}"):
        info = _check_visibility(repository)
        paths = [sibling.rfilename for sibling in info.siblings or ()]
        stale = [path for path in paths if path not in files and _fits(path, patterns)]
        commit = repository.api.create_commit(
            repository.name,
            operations=[
                *(CommitOperationAdd(path, file) for path, file in sorted(files.items())),
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=message,
            repo_type=repository.kind,
            parent_commit=info.sha,
        )
    print(
        f"{repository.name}: {len(files)} files, {'public' if repository.public else 'private'}, {commit.commit_url}"
    )
    return commit.commit_url


def _fits(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)


def files_of(folder: str | Path, patterns: Iterable[str]) -> dict[str, Path]:
    """The files of `folder` that fit `patterns` (as many slashes as the pattern), by their path in it."""
    folder, patterns = Path(folder), tuple(patterns)
    paths = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}
    return {name: path for name, path in sorted(paths.items()) if path.is_file() and not path.name.startswith(".")}


def prepare_push(training_args, sources: Iterable[str], because: str | None) -> Repository | None:
    """The repository that a run with `--push_to_hub` ends in, made before training; None where this process has none.

    Trainer's own push is switched off: it uploads pickles, training_args.bin and each checkpoint's optimizer, and
    leaves the visibility to the Hub. Private unless `--hub_private_repo false` or a reason is given; a tracker's Space
    is private in any case. Raises InputError as `open_repository` does, so that a long run does not fail at its last
    step, and where logged completions would go to the Hub or to a tracker elsewhere, with `--push_to_hub` or without.
    """
    if getattr(training_args, "log_completions_hub_repo", None):  # of GRPO and PPO
        raise InputError(
            "--log_completions_hub_repo would put prompts and reports on the Hub; leave it out: --log_completions "
            f"keeps them in {training_args.output_dir}/completions"
        )
    sources = list(sources)
    check_trackers(training_args, sources)
    public = bool(because) or training_args.hub_private_repo is False
    if not training_args.push_to_hub and public:
        argument = "--public_because" if because else "--hub_private_repo false"
        raise InputError(f"{argument} is about a push: add --push_to_hub, or leave it out")
    training_args.hub_private_repo = True  # what still takes it is a tracker's Space
    if not training_args.push_to_hub:
        return None
    training_args.push_to_hub = False
    if training_args.hub_strategy in ("checkpoint", "all_checkpoints"):
        raise InputError(f"--hub_strategy {training_args.hub_strategy.value} would push pickles; leave it out: the "
                         "checkpoint is pushed once, at the end")  # fmt: skip
    if training_args.hub_revision:
        raise InputError("--hub_revision: a run is pushed to the main branch; leave it out")
    name = training_args.hub_model_id or Path(training_args.output_dir).resolve().name
    check_allowed(name, "model", sources, public, because)
    if training_args.process_index:
        return None
    retry_command = (
        "when the Hub is in reach again, push what was saved with: python recipes/push_checkpoint.py "
        f"--model {training_args.output_dir} --repo {name}"
    )
    return open_repository(name, "model", sources, public, because, training_args.hub_token, retry_command)


def push_checkpoint(repository: Repository, folder: str | Path) -> str:
    """Pushes the checkpoint in `folder` with its processor, its code, its run_config.json and its card.

    The card is written first unless evaluate.py or somebody wrote one, and a run_config.json where there is none: the
    run's own for a step's checkpoint, `checkpoint-5`, or else the sources alone. Returns the commit's URL. Raises
    InputError as `push_files` does, and where the folder holds no weights.
    """
    files = files_of(folder, CHECKPOINT)
    if not any(name.endswith(".safetensors") for name in files):
        raise InputError(f"{folder} holds no checkpoint (no .safetensors); name the folder that a recipe ended in")
    if "run_config.json" not in files:  # without it, who trains from the repository would take it for a base model
        files["run_config.json"], above = Path(folder) / "run_config.json", _find_run_config(Path(folder))
        with replacing(files["run_config.json"]) as file:
            file.write_text(above.read_text() if above else json.dumps({"sources": repository.sources}) + "\n")
    files["README.md"] = card_for_push(folder, repository.name)
    return push_files(repository, files, CHECKPOINT, f"{Path(folder).resolve().name}, pushed by RRG Recipes")
