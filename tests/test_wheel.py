"""The wheel in an empty environment: it carries every file that the code reads, and every script starts from it."""

import json
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("recipes", "rewards", "modeling")
READ = {".py", ".json", ".yaml", ".txt", ".jinja", ".css", ".js"}  # pages and pictures are for the repository alone
LIBRARY = {"__init__", "__main__", "cli", "files", "progress", "templates", "usage"}
EXAMPLES = "recipes/examples/"  # code to read, in no package

# In the empty environment: a reward, a default configuration, and --help of every script as `python -m` starts it
CHILD = """
import io, json, pkgutil, runpy, sys
from contextlib import redirect_stdout

import recipes
from recipes.cli import parse
from recipes.train_chexbert import LabelerConfig, RecipeArguments
from rewards import mccs_reward

answers = {"file": recipes.__file__, "help": {}}
sys.argv = ["train_chexbert"]
_, configuration = parse(RecipeArguments, LabelerConfig, default_config="configs/chexbert/openi.yaml")
answers["configuration"] = configuration.to_dict()
texts = ["No pleural effusion.", "Large pleural effusion."]
answers["reward"] = mccs_reward([[{"content": text}] for text in texts], report=["Large pleural effusion."] * 2)
for module in pkgutil.iter_modules(recipes.__path__):
    if module.name not in LIBRARY and not module.ispkg:
        sys.argv, out = [module.name, "--help"], io.StringIO()
        try:
            with redirect_stdout(out):
                runpy.run_module(f"recipes.{module.name}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            answers["help"][module.name] = [end.code, out.getvalue()]
print(json.dumps(answers, default=str))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built by setuptools as it is installed here, from a copy: in the checkout the build would leave folders."""
    source = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        copytree(ROOT / name, source / name, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (file,) = (source / "dist").glob("*.whl")
    return file


def test_every_file_that_the_code_reads_is_in_the_wheel(wheel):
    files = {path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    expected = {path.as_posix() for path in files if path.suffix in READ and "__pycache__" not in path.parts}
    present = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert present == {name for name in expected if not name.startswith(EXAMPLES)}


def test_the_wheel_asks_for_what_pyproject_lists(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(metadata.get_all("Provides-Extra")) == set(extras) >= {"gpu", "test", "bench"}
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert {requirement.name for requirement in requirements if requirement.marker is None} == {
        Requirement(line).name for line in project["dependencies"]
    }
    for extra, lines in extras.items():
        names = {one.name for one in requirements if one.marker and one.marker.evaluate({"extra": extra})}
        assert names == {Requirement(line).name for line in lines}


def test_scripts_start_from_the_wheel(wheel, tmp_path):
    """In an environment with nothing but the wheel; what it depends on is found in this one's folder, whose own
    editable installation is not, since Python reads the .pth files of an environment's own folder alone."""
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty/bin/python"
    install = (sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-cache", "--no-deps", "--quiet")
    subprocess.run((*install, "--python", python, wheel), check=True)
    (site,) = (tmp_path / "empty/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path(kind) for kind in ("purelib", "platlib")}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["OMP_NUM_THREADS"] = "1"
    child = CHILD.replace("LIBRARY", repr(LIBRARY))
    process = subprocess.run([python, "-c", child], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout.splitlines()[-1])

    assert Path(answers["file"]).is_relative_to(site)
    assert answers["reward"][0] < answers["reward"][1] == pytest.approx(1, abs=1e-6)
    values = yaml.safe_load((ROOT / "recipes/configs/chexbert/openi.yaml").read_text())
    assert {name: answers["configuration"][name] for name in ("learning_rate", "output_dir")} == {
        name: values[name] for name in ("learning_rate", "output_dir")
    }
    assert set(answers["help"]) == {path.stem for path in (ROOT / "recipes").glob("*.py")} - LIBRARY
    for name, (code, text) in answers["help"].items():
        assert code == 0 and f"recipes/{name}.py" in text and "\n  --" in text, (name, code, text)
    assert not list(elsewhere.iterdir())
