"""The commands: every kind of a user's mistake, over all scripts where it can be made."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CONFIGS = Path(__file__).resolve().parents[2] / "recipes/configs"
READERS = (  # scripts that read a data set, by the argument that names it
    *("grpo_mrgr1", "sft_mrgr1", "sft_llmrg4", "sft_lmrrg", "ppo_lmrrg", "generate", "evaluate", "build_tiny"),
    *("build_mimic_rg4", "weigh_tokens", "dataset_stats", "train_chexbert", "train_crepe", "train_discbert"),
    "push_dataset",
)
VISION = ("grpo_mrgr1", "sft_mrgr1", "sft_llmrg4", "sft_lmrrg", "ppo_lmrrg", "generate")  # read images
TRAINERS = ("grpo_mrgr1", "sft_mrgr1", "sft_llmrg4", "sft_lmrrg", "ppo_lmrrg")
LABELERS = ("train_chexbert", "train_crepe", "train_discbert")
ALL = (
    *READERS, "ablations", "app", "build_from_table", "build_iu_xray", "build_mimic_cxr", "build_phantom",
    "build_public_set", "certify", "convert_biomedclip", "convert_chexbert", "convert_crepe", "convert_discbert",
    "convert_llmrg4", "convert_radgraph", "demo", "generate_region_descriptions", "push_checkpoint", "reward_card",
    "setup_gpu", "dpo", "rl", "rl_llmrg4", "build_preferences", "lab",
)  # fmt: skip


class Command(NamedTuple):
    """`python recipes/SCRIPT.py WORDS`; its sentence has the regular expression `expected`."""

    kind: str
    script: str
    words: list[str]
    expected: str
    environment: dict[str, str]


def bases(shelf: Path) -> dict[str, dict]:
    """Arguments of each script that it would run with."""
    cpu = {"use_cpu": "true", "bf16": "false", "report_to": "none", "max_steps": 1, "eval_strategy": "no"}
    cpu |= {"save_strategy": "no", "disable_tqdm": "true", "output_dir": "run"}
    good, model = shelf / "data/good", {name: shelf / "models" / name for name in ("qwen", "llmrg4", "lmrrg")}
    small = {"per_device_train_batch_size": 4, "dataset": good}
    group = small | {"num_generations": 2, "max_completion_length": 4, "num_completions_to_print": 0}
    labeler = cpu | {"dataset": good, "held_out": 0.3, "texts": 8, "per_device_train_batch_size": 4}
    public = {"split_scheme": "official", "root": shelf / "images"}
    return {
        "grpo_mrgr1": cpu | group | {"config": CONFIGS / "mrgr1/phantom.yaml", "model_name_or_path": model["qwen"],
                                     "effective_batch_size": 4, "save_steps": 1000},
        "sft_mrgr1": cpu | small | {"config": CONFIGS / "mrgr1/sft_phantom.yaml", "model_name_or_path": model["qwen"],
                                    "target": "reasoning", "views": "all"},
        "sft_llmrg4": cpu | small | {"config": CONFIGS / "llmrg4/demo_stage1.yaml",
                                     "model_name_or_path": model["llmrg4"]},
        "sft_lmrrg": cpu | small | {"config": CONFIGS / "lmrrg/demo.yaml", "model_name_or_path": model["lmrrg"]},
        "ppo_lmrrg": cpu | group | {"config": CONFIGS / "lmrrg/demo_cqrl.yaml", "model_name_or_path": model["lmrrg"],
                                    "allow_scratch": "true", "rewards": "mccs", "reward_range": None},
        "rl_llmrg4": cpu | group | {"config": CONFIGS / "llmrg4/grpo_phantom.yaml",
                                    "model_name_or_path": model["llmrg4"], "effective_batch_size": 4},
        "rl": cpu | group | {"config": CONFIGS / "rl/mrgr1.yaml", "algorithm": "rloo",
                             "model_name_or_path": model["qwen"], "effective_batch_size": 4},
        "dpo": cpu | small | {"config": CONFIGS / "mrgr1/dpo.yaml", "model_name_or_path": model["qwen"],
                              "pairs": shelf / "files/pairs.jsonl", "use_peft": "false", "dtype": "float32",
                              "attn_implementation": "sdpa", "effective_batch_size": 4},
        "build_preferences": {"dataset": good, "predictions": shelf / "files/reports.jsonl", "rewards": "ce_f1",
                              "out": "out/pairs.jsonl"},
        "train_chexbert": labeler, "train_crepe": labeler, "train_discbert": labeler,
        "generate": {"model": model["qwen"], "dataset": good, "out": "out/test.jsonl", "max_new_tokens": 2,
                     "prompt_file": "prompts/zero_shot.txt", "views": "frontal"},
        "evaluate": {"dataset": good, "predictions": f"a={shelf}/files/reports.jsonl", "out": "out/scores",
                     "resamples": 100, "meteor": "no"},
        "build_tiny": {"dataset": good, "out": "out/tiny", "warm_up": good, "warm_up_steps": 1, "vocab_size": 300,
                       "hidden_size": 64},
        "build_mimic_rg4": {"dataset": good, "out": "out/rg4"},
        "weigh_tokens": {"dataset": good, "out": "out/weighed", "model": shelf / "models/chexbert", "max_nodes": 5,
                         "tolerance": 100},
        "dataset_stats": {"datasets": good, "out": "out/statistics"},
        "push_dataset": {"dataset": good, "repo": "someone/phantom"},
        "push_checkpoint": {"model": model["qwen"], "repo": "someone/phantom"},
        "build_from_table": {"table": shelf / "files/table.csv", "images": shelf / "images", "source": "Ours",
                             "license": "internal", "out": "out/data", "no_subjects": True},
        "build_iu_xray": {"image_source": "phantom", "out": "out/data", "limit": 20},
        "build_mimic_cxr": {"root": shelf / "images", "out": "out/data"},
        "build_phantom": {"out": "out/data", "n_train": 2, "n_validation": 1, "n_test": 1, "size": 64},
        "build_public_set": public | {"set": "rexgradient-160k", "out": "out/data"},
        "certify": {"out": "out/certificate", "only": "packages"},
        "convert_biomedclip": {"checkpoint": shelf / "models/qwen", "out": "out/model"},
        "convert_chexbert": {"checkpoint": shelf / "files/text.pth", "out": "out/model",
                             "tokenizer": shelf / "models/bert"},
        "convert_crepe": {"checkpoint": shelf / "models/qwen", "out": "out/model"},
        "convert_discbert": {"checkpoint": shelf / "files/text.pth", "out": "out/model",
                             "tokenizer": shelf / "models/bert"},
        "convert_llmrg4": {"checkpoint": shelf / "files/text.pth", "out": "out/model"},
        "convert_radgraph": {"archive": shelf / "files/text.pth", "out": "out/model"},
        "demo": {"out": "out/demo"}, "ablations": {"out": "out/ablations"}, "lab": {"out": "out/lab"},
        "app": {"models": model["qwen"], "prompt_files": "prompts/zero_shot.txt", "views": "frontal", "port": 7999},
        "generate_region_descriptions": {"llm": "absent/llm", "out": "out/regions.json"},
        "reward_card": {"out": "out/card", "data": shelf / "files", "rewards": "mccs", "reports": 10,
                        "resamples": 10},
        "setup_gpu": {"flash_attn": "false"},
    }  # fmt: skip


def make_commands(shelf: Path) -> list[Command]:
    """All commands, by kind; `shelf` is the folder that shelf.py fills."""
    base, commands = bases(shelf), []

    def add(kind: str, script: str, expected: str, environment: dict[str, str] | None = None, **changes) -> None:
        words = []
        for name, value in (base[script] | changes).items():
            values = value if isinstance(value, (list, tuple)) else [value]
            if value is True:
                words.append(f"--{name}")
            elif value is not None:
                words += [f"--{name}", *map(str, values)]
        commands.append(Command(kind, script, words, expected, environment or {}))

    for kind in (
        add_data,
        add_models,
        add_folders,
        add_yaml,
        add_numbers,
        add_outputs,
        add_names,
        add_tables,
        add_processes,
    ):
        kind(add, shelf)
    return commands


def data_argument(script: str) -> str:
    return "datasets" if script == "dataset_stats" else "dataset"


def add_data(add, shelf: Path) -> None:
    """Data sets: columns, labels, build.json, images, Parquet files, folders."""
    labelled = ("grpo_mrgr1", "sft_mrgr1", "sft_lmrrg", "ppo_lmrrg", "build_tiny", "evaluate", "dataset_stats")
    priors = ("sft_llmrg4", "build_mimic_rg4")

    def over(kind: str, scripts, expected: str, *names: str) -> None:
        for name in names:
            for script in scripts:
                add(kind, script, expected, **{data_argument(script): shelf / "data" / name})

    over("labels", labelled, r"labels of study phantom-0-\w+-000002", "labels_null", "labels_range")
    over("labels", labelled, "labels", "labels_text", "labels_short")
    over("columns", READERS[:-1], "column report", "report_number")
    over("columns", ("sft_mrgr1", "train_crepe", "evaluate"), "column report", "report_list")
    over("columns", ("grpo_mrgr1", "train_discbert", "weigh_tokens"), "no reports", "report_null")
    over("columns", VISION, "column images", "images_text")
    over("columns", ("sft_llmrg4", "dataset_stats"), "column views", "views_number")
    over("columns", ("sft_llmrg4",), "study phantom-0-train-000002", "views_null")
    over("columns", ("generate", "evaluate"), "study_id", "study_id_null", "study_id_number")
    over("columns", priors, "column prior_report", "prior_report_number")
    over("columns", priors, "scenario", "scenario_other", "scenario_null")
    over("columns", ("sft_llmrg4",), "study phantom-0-train-000002", "key_spans_beyond", "key_spans_reversed")
    over("build.json", ("grpo_mrgr1", "sft_lmrrg", "evaluate", "dataset_stats", "weigh_tokens"),
         r"build\.json", "build_half", "build_list")  # fmt: skip
    over("build.json", ("sft_mrgr1", "ppo_lmrrg"), r"build\.json", *("build_null", "build_latin", "build_empty"))
    over("images", VISION, r"image 1 of study phantom-0-\w+-000002", "image_empty", "image_half", "image_strip")
    over("images", VISION, r"study phantom-0-\w+-000002 has no image", "images_null")
    for script in VISION:
        add("images", script, r"image 1 of study phantom-0-\w+-000002 is truncated or damaged",
            dataset=shelf / "data/image_holed", check_images="true")  # fmt: skip
    over("images", ("grpo_mrgr1", "generate"), r"image 1 of study phantom-0-\w+-000002", "image_none", "image_text")
    over("images", ("sft_mrgr1", "generate"), r"images/gone\.png", "image_gone")
    over("data set", READERS, "no data set at|no local folder|no such folder|there is no|absent/data", "absent/data")
    over("data set", READERS, r"holds no train\.parquet|no data set", "nothing")
    over("data set", ("grpo_mrgr1", "evaluate", "train_crepe", "weigh_tokens"), "damaged", "parquet_half")
    over("data set", ("sft_llmrg4", "generate", "dataset_stats"), "damaged", "parquet_empty", "parquet_text")
    over("data set", ("sft_lmrrg", "evaluate"), "has no rows", "parquet_none")
    over("data set", ("sft_mrgr1", "build_tiny"), "no split 'train'", "no_train")
    over("data set", ("ppo_lmrrg", "push_dataset"), "data/file", "file")


def add_models(add, shelf: Path) -> None:
    """Folders of models."""
    users = {
        **dict.fromkeys(("grpo_mrgr1", "sft_mrgr1"), ("model_name_or_path", "qwen")),
        **dict.fromkeys(("generate", "push_checkpoint"), ("model", "qwen")),
        "app": ("models", "qwen"),
        "sft_llmrg4": ("model_name_or_path", "llmrg4"),
        "sft_lmrrg": ("model_name_or_path", "lmrrg"),
        "ppo_lmrrg": ("model_name_or_path", "lmrrg"),
        "weigh_tokens": ("model", "chexbert"),
        "train_chexbert": ("model", "chexbert"),
        "train_discbert": ("model", "discbert"),
        "train_crepe": ("model", "crepe"),
    }
    sentences = {
        "pickled": "a pickle that holds code", "truncated": r"model\.safetensors", "zeroed": r"model\.safetensors",
        "without_weights": "no weights", "without_processor": "no processor|no tokenizer|processor of",
        "without_config": r"config\.json", "half_config": r"config\.json", "listed_config": r"config\.json",
        "half_tokenizer": "tokenizer", "other_model": "gpt2", "emptied": "is empty|config.json",
    }  # fmt: skip
    for script, (argument, kind) in users.items():
        for damage, sentence in sentences.items():
            if script != "push_checkpoint":  # which opens the repository first
                add("models", script, sentence, **{argument: shelf / f"models/{kind}_{damage}"})
        add("models", script, "no such folder|there is no|is no folder", **{argument: "outputs/absent/sft"})
        add("models", script, "is a file|no such folder", **{argument: shelf / "models/file"})
    for script in ("grpo_mrgr1", "sft_mrgr1", "generate", "app"):
        add("models", script, "chat template", **{users[script][0]: shelf / "models/qwen_without_template"})


def add_folders(add, shelf: Path) -> None:
    """Folders and files, of models or not, that are not there."""
    absent = "outputs/absent/model"
    for script, arguments in {
        "evaluate": (
            "radgraph",
            "bertscore",
            "semb",
            "crepe",
            "ratescore_ner",
            "original_references",
            "judge_prompts",
        ),
        "sft_llmrg4": ("vision", "text", "decoder"),
        "sft_lmrrg": ("biomedclip", "decoder", "region_descriptions"),
        "build_tiny": ("chexbert", "parts_of", "warm_up"),
        "generate": ("chat_template",),
        "app": ("chat_template",),
        "train_discbert": ("eval_file",),
        "build_mimic_cxr": ("root", "reports", "images"),
        "build_iu_xray": ("reports", "split_file"),
        "build_public_set": ("root", "images"),
        "build_from_table": ("table", "images"),
        "convert_chexbert": ("tokenizer",),
    }.items():
        for argument in arguments:
            more = {"model_name_or_path": None} if script in ("sft_llmrg4", "sft_lmrrg") else {}
            more |= (
                {"system": {"chexbert": "llmrg4", "parts_of": "lmrrg"}.get(argument)} if script == "build_tiny" else {}
            )
            more |= {"judge": "green", "llm": absent} if argument == "judge_prompts" else {}
            if more.get("model_name_or_path", "") is None:
                more["config"] = shelf / f"files/parts_{script}.yaml"
            add("folders", script, rf"{absent}|{argument}", **more, **{argument: absent})
    for script in ("dataset_stats", "build_mimic_rg4"):
        add("folders", script, absent, judge=f"discbert:{absent}")
        add("folders", script, "judge", judge="discbart")
    add("folders", "evaluate", absent, hall_judge=f"discbert:{absent}")
    add("folders", "generate", "vllm|GPU", engine="vllm")


def add_yaml(add, shelf: Path) -> None:
    """YAML files."""
    seeded = ("grpo_mrgr1", "sft_lmrrg", "train_crepe", "build_phantom", "generate", "evaluate", "app")
    forms = {
        "list": "mapping", "word": "mapping", "tab": "YAML", "empty": "mapping", "env_list": "env must be",
        "env_text": "env must be", "env_nested": "env", "unknown": "learning_rat", "key_number": "no argument 3",
        "key_null": "no argument", "unclosed": "YAML", "python": "python/object|YAML", "latin": "UTF-8",
        "binary": "UTF-8", "two": "YAML", "twice": "seed.*twice",
    }  # fmt: skip
    values = {"value_mapping": "seed", "value_list": "seed", "value_nan": "seed", "value_text": "seed",
              "value_date": "seed"}  # fmt: skip
    for number, script in enumerate(ALL):
        for form in list(forms)[number % 3 :: 3]:
            if form != "twice":
                add("YAML", script, rf"{form}\.yaml.*({forms[form]})", config=shelf / f"files/{form}.yaml")
    for script in seeded:
        add("YAML", script, r"twice\.yaml.*seed", config=shelf / "files/twice.yaml")
        for form, sentence in values.items():
            add("YAML", script, sentence, config=shelf / f"files/{form}.yaml", seed=None)
    for script in ("demo", "setup_gpu", "push_dataset"):
        add("YAML", script, "there is no config file absent.yaml", config="absent.yaml")
        add("YAML", script, "folder|no config file", config=shelf)


def add_numbers(add, shelf: Path) -> None:
    """Numbers."""
    fields = {
        "grpo_mrgr1": ("learning_rate", "margin", "max_completion_length"),
        "sft_mrgr1": ("max_samples", "per_device_train_batch_size"),
        "sft_llmrg4": ("key_weight",),
        "sft_lmrrg": ("lambda_disease", "learning_rate"),
        "ppo_lmrrg": ("theta", "temperature", "gamma"),
        "train_chexbert": ("held_out", "texts", "bar"),
        "train_crepe": ("held_out", "texts"),
        "train_discbert": ("held_out", "bar"),
        "generate": ("batch_size", "max_new_tokens", "repetition_penalty", "limit"),
        "evaluate": ("resamples", "margin", "train_pool", "judge_retries"),
        "build_tiny": ("warm_up_steps", "image_size", "hidden_size", "tagged"),
        "build_mimic_rg4": ("max_rounds", "timeout", "retries", "backoff"),
        "weigh_tokens": ("threshold", "tolerance", "max_nodes"),
        "build_from_table": ("image_size", "fractions"),
        "build_iu_xray": ("image_size", "max_images", "limit"),
        "build_mimic_cxr": ("workers",),
        "build_phantom": ("n_train", "size", "abnormal"),
        "app": ("port", "max_upload", "image_size"),
        "reward_card": ("reports", "resamples"),
    }
    allowed = {  # values that a field takes
        ("margin", "0"), ("lambda_disease", "0"), ("learning_rate", "0"), ("theta", "0"), ("theta", "-3"),
        ("gamma", "0"), ("bar", "0"), ("bar", "-3"), ("judge_retries", "0"), ("retries", "0"), ("backoff", "0"),
        ("abnormal", "0"), ("threshold", "0"), ("threshold", "-3"), ("tagged", "0"), ("warm_up_steps", "0"),
        ("train_pool", "0"), ("image_size", "0"),
    }  # fmt: skip
    for script, names in fields.items():
        for place, name in enumerate(names):
            for value in ("nan", "-3") if place else ("-3", "nan", "inf", "1e400", "0", "many"):
                if (name, value) not in allowed or (name == "image_size" and script != "build_from_table"):
                    add("numbers", script, name, **{name: [value, 0.1] if name == "fractions" else value})
    add("numbers", "demo", "seeds", seeds="-1")
    add("numbers", "demo", "seeds", seeds=["1", "1"])
    add("numbers", "ablations", "seeds", seeds="nan")
    add("numbers", "lab", "no whole number of steps", samples=100)


def add_outputs(add, shelf: Path) -> None:
    """Places that cannot be written; the data set or checkpoint is absent too, so that they must be found first."""
    absent = {"dataset": "absent/data", "datasets": "absent/data", "checkpoint": "absent.pth", "archive": "absent.pth",
              "table": "absent.csv", "llm": "absent/llm", "root": "absent/files"}  # fmt: skip
    file = shelf / "files/text.pth"
    for script, base in bases(shelf).items():
        name = "output_dir" if "output_dir" in base else "out"
        if name not in base:
            continue
        missing = {argument: path for argument, path in absent.items() if argument in base}
        writes_file = script in ("generate", "generate_region_descriptions", "build_preferences")
        wrong = shelf if writes_file else file
        add("outputs", script, f"{name}.*(folder|file)", **missing, **{name: wrong})
        add("outputs", script, f"{name}.*text.pth", **missing, **{name: file / "run/out"})
        add("outputs", script, f"{name}.*/proc", **missing, **{name: "/proc/run/out"})
        add("outputs", script, f"{name}.*/sys", **missing, **{name: "/sys/out"})
    occupied = ("build_tiny", "evaluate", "weigh_tokens", "build_mimic_rg4", "build_phantom", "build_iu_xray",
                "build_from_table", "build_mimic_cxr", "build_public_set", "certify", "convert_chexbert",
                "convert_crepe", "convert_discbert", "convert_biomedclip", "convert_llmrg4", "convert_radgraph",
                "generate_region_descriptions")  # fmt: skip
    for script in occupied:
        # weigh_tokens finds it after its small input is read, before the work
        names = () if script == "weigh_tokens" else bases(shelf)[script]
        missing = {argument: path for argument, path in absent.items() if argument in names}
        add("outputs", script, "out.*(folder|earlier|file)", **missing, out=shelf / "images")


def add_names(add, shelf: Path) -> None:
    """Names: of metrics, rewards, labelers, trackers, prompts, and what stands for them."""
    for name in ("accuracy", "clinical_f1", "rewards/bleu_reward/mean"):
        for script in ("grpo_mrgr1", "sft_mrgr1", "sft_lmrrg", "ppo_lmrrg", "train_discbert"):
            add("metrics", script, "metric_for_best_model", metric_for_best_model=name, eval_strategy="steps",
                eval_steps=1)  # fmt: skip
    for script in ("grpo_mrgr1", "ppo_lmrrg"):
        for reward in ("bleux", "my_lab.rewards.mine", "rewards.mccs.absent", "os.path", "math.pi", "mccs.", ".mccs",
                       "rewards.labels.FINDINGS"):  # fmt: skip
            add("rewards", script, "reward", rewards=reward, reward_weights=None)
        add("rewards", script, "reward_weights", rewards=["mccs", "bleu"], reward_weights=["1", "1", "1"])
        for reward, argument in (("crepe", "crepe"), ("radgraph", "radgraph"), ("bertscore", "bertscore")):
            add("rewards", script, reward, rewards=reward, reward_weights=1, **{argument: "absent/model"})
    add("rewards", "reward_card", "bleux", rewards=["mccs", "bleux"])
    add("rewards", "reward_card", "os", rewards="os.path")
    for script in (*TRAINERS, *LABELERS):
        for tracker in ("wandb", "tensorboardx"):
            add("trackers", script, tracker, report_to=tracker)
    for script in ("grpo_mrgr1", "sft_lmrrg", "evaluate", "build_mimic_rg4", "app", "build_from_table"):
        for labeler in ("chexpert", "chexbert:absent/model"):
            more = {"target": None} if script == "sft_mrgr1" else {}
            add("labelers", script, "labeler", labeler=labeler, **more)
    for script in ("grpo_mrgr1", "sft_llmrg4", "generate", "build_tiny"):
        add("prompts", script, "prompt", prompt_file="absent.txt")
        add("prompts", script, "prompt", prompt_file=shelf / "files/prompt_latin.txt")
        add("prompts", script, "prompt", prompt_file=shelf)
    for script in ALL:
        add("arguments", script, "outt", outt="x")
    for script in ("grpo_mrgr1", "generate", "evaluate", "sft_lmrrg"):
        add("choices", script, "views|split|preset", **{"evaluate": {"split": "tset"}}.get(script, {"views": "side"}))
    add("choices", "demo", "system", system="mrgr2")
    add("choices", "ablations", "mrgr2", system="mrgr2")
    add("choices", "lab", "did you mean mrgr1", system="mrgr2")
    add("choices", "lab", "did you mean grpo_mccs", row="grpo_mcs")
    add("choices", "certify", "radgraf", only="radgraf")
    add("choices", "build_phantom", "scenarios", scenarios="xx")
    add("choices", "build_phantom", "site", site="c")
    add("choices", "build_public_set", "set", set="mimic")
    add("choices", "generate", "dtype", dtype="float33")
    add("choices", "sft_mrgr1", "dtype", dtype="float33")
    add("choices", "convert_llmrg4", "dtype", dtype="int8")
    add("choices", "grpo_mrgr1", "resume_from_checkpoint", resume_from_checkpoint="latest")
    add("choices", "train_crepe", "resume_from_checkpoint", resume_from_checkpoint="absent")
    add("choices", "evaluate", "predictions", predictions="reports.jsonl")
    add("choices", "evaluate", "no file|there is no", predictions="a=absent.jsonl")
    add("choices", "push_dataset", "repo", repo="no slash")
    add("choices", "push_checkpoint", "repo", repo="a/b/c")
    add("choices", "app", "models|checkpoint", models=[shelf / "models/qwen"] * 3)
    for script in TRAINERS:
        nothing = dict.fromkeys(bases(shelf)[script])
        add("no GPU", script, r"configs/\w+/(phantom|sft_phantom|demo\w*)\.yaml", **nothing)
    for script in ("dpo", "rl", "rl_llmrg4"):
        nothing = dict.fromkeys(bases(shelf)[script]) | {"dataset": "absent/data"}
        nothing |= {"dpo": {"pairs": "absent.jsonl"}, "rl": {"rewards": "severity"}}.get(script, {})
        add("no GPU", script, r"configs/\w+/(dpo_phantom|grpo_phantom|mrgr1)\.yaml", **nothing)
    for changes, sentence in (
        ({"algorithm": "reinforce"}, "no algorithm 'reinforce'.*grpo, rloo, ppo"),
        ({"algorithm": "ppo", "advantage_norm": "paper"}, "there is no argument --advantage_norm"),
        ({"model_name_or_path": None, "config": CONFIGS / "rl/rloo.yaml", "rewards": "severity"}, "no model is named"),
        ({"model_name_or_path": shelf / "models/bert"}, "reads no images"),
        ({"model_name_or_path": shelf / "models/llmrg4", "views": "each"}, "views of LLM-RG4 must be"),
        ({"model_name_or_path": shelf / "models/lmrrg", "max_pixels": 3136}, "images of LM-RRG have one size"),
    ):
        add("policies", "rl", sentence, **changes)
    for changes, sentence in (
        ({"rejected": "retrieved"}, "leave out --predictions"),
        ({"predictions": None}, "--predictions is missing"),
        ({"rewards": None}, "--rewards is missing"),
        ({"rejected": "retrieved", "predictions": None, "rewards": None, "neighbours": 0}, "neighbours"),
    ):
        add("pairs", "build_preferences", sentence, **changes)
    add("pairs", "dpo", "DPO's own loss", chosen_penalty=0.1, loss_type="ipo")
    add("pairs", "dpo", "conflict_weight", conflict_weight=-1)


def add_tables(add, shelf: Path) -> None:
    """Tables and text files."""
    files = shelf / "files"
    for name in ("latin", "utf16", "empty", "binary", "head", "columns", "range", "word", "short"):
        add("tables", "train_chexbert", r"labelled_\w+\.csv", csv=files / f"labelled_{name}.csv", dataset=None)
    for name in ("latin", "empty", "binary", "head", "columns"):
        add("tables", "build_from_table", rf"table_{name}\.csv|report|the table", table=files / f"table_{name}.csv")
        add("tables", "train_discbert", rf"table_{name}\.csv", judgements=files / f"table_{name}.csv", dataset=None)
        add("tables", "evaluate", rf"table_{name}\.csv", predictions=f"a={files}/table_{name}.csv")
        add("tables", "evaluate", rf"table_{name}\.csv", references=files / f"table_{name}.csv", dataset=None)
    add("tables", "train_discbert", r"table\.csv", judgements=files / "table.csv", dataset=None)
    add("tables", "train_discbert", r"table_megabyte\.csv", judgements=files / "table_megabyte.csv", dataset=None)
    for name in ("half", "twice", "number", "null", "empty", "list", "latin"):
        add("tables", "evaluate", rf"reports_{name}\.jsonl", predictions=f"a={files}/reports_{name}.jsonl")
    for name in ("empty", "text"):
        add("tables", "build_from_table", "image", images=shelf / f"images_{name}")
    for name in ("pickle", "half", "empty", "text", "absent"):
        for script in ("convert_chexbert", "convert_discbert", "convert_llmrg4"):
            add("tables", script, rf"{name}\.pth", checkpoint=files / f"{name}.pth")
        add("tables", "convert_radgraph", rf"{name}\.pth", archive=files / f"{name}.pth")


def add_processes(add, shelf: Path) -> None:
    """More than one process, of a script that is for one."""
    environment = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for script in ALL:
        if script not in (*TRAINERS, *LABELERS, "dpo", "rl", "rl_llmrg4", "generate"):
            add("processes", script, "one process", environment)


def of_each_kind(commands: list[Command]) -> Iterator[Command]:
    """Of each kind the first command."""
    kinds = set()
    for command in commands:
        if command.kind not in kinds:
            kinds.add(command.kind)
            yield command
