"""The disk full, and freed: one sentence, what was there as it was, and the same bytes in the end.

The disk is a tmpfs of a few megabytes in a mount namespace of the test's own (`tmpfs.py`), never one of the machine's.
"""

from pathlib import Path

import pytest
import runs
import tmpfs

pytestmark = pytest.mark.skipif(not tmpfs.available(), reason="this machine gives nobody a mount namespace")
SCRIPT = Path(__file__).with_name("full_disk.py")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return runs.given(tmp_path_factory.mktemp("given"))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) for case in ("train", "checkpoint", "save", "merge")]
)
def test_a_full_disk_loses_nothing_and_when_it_is_freed_the_command_ends_in_the_same_bytes(tmp_path, given, case):
    done = tmpfs.run(tmp_path / "disk", 4 << 20, str(SCRIPT), case, str(tmp_path / "outside"), env=given)
    assert done.returncode == 0 and done.stdout.strip().endswith("as it should be"), done.stdout + done.stderr
    assert not any((tmp_path / "disk").iterdir()), "outside the namespace nothing was mounted"


READ_ONLY = """
import contextlib, io, os, subprocess
import tmpfs
from lora_jax.commands import cli
place, size = globals()["PLACE"], globals()["SIZE"]
(place / "mine").write_text("mine")
tmpfs.check(place, size)
subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
commands = {
    "train": ["--model", "nothing", "--data", "nowhere.txt"], "pretrain": ["--data", "nowhere.txt"], "demo": [],
    "merge": ["--model", "nothing", "--adapter", "nowhere"], "stories": [], "measure": ["--device", "cpu"],
}
for name, words in commands.items():
    for out in (place / "out", place / "a" / "b"):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert cli.main([name, *words, "--out", str(out)]) == 2
        assert "could not write" in said.getvalue() and "Read-only file system" in said.getvalue(), said.getvalue()
assert os.listdir(place) == ["mine"]
print("as it should be")
"""


def test_a_place_that_is_read_only_is_noticed_before_anything_is_loaded(tmp_path, given):
    """Neither the model nor the data that are named is there: the place is what is refused."""
    script = tmp_path / "read_only.py"
    script.write_text(READ_ONLY)
    done = tmpfs.run(tmp_path / "disk", 1 << 20, str(script), env=given)
    assert done.returncode == 0 and "as it should be" in done.stdout, done.stdout + done.stderr


DOWNLOAD = """
import hashlib, os, zipfile
import tmpfs
from lora_jax.errors import InputError
from lora_jax.files import assets
place, size = globals()["PLACE"], globals()["SIZE"]
content, wheel = os.urandom(1 << 20), place / "my_verse-1.2-py3-none-any.whl"
with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("my_verse/data.bin", content)
sums = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), content)]
member, long = "my_verse/data.bin", wheel.stat().st_size
asset = assets.Asset("verse", "my-verse", "1.2", sums[0], long, member, sums[1], "MIT", "it")
os.environ["LORA_JAX_CACHE"] = str(place)
filling = tmpfs.fill(place, size)
os.truncate(filling, filling.stat().st_size - (1 << 19))
try:
    assets.fetch(asset)
except InputError as error:
    assert "No space left on device" in str(error), error
else:
    raise AssertionError("it fitted")
assert sorted(os.listdir(place)) == ["filling", wheel.name]
filling.unlink()
assert assets.fetch(asset).read_bytes() == content
print("as it should be")
"""


def test_a_download_that_does_not_fit_leaves_nothing_and_is_whole_when_there_is_room(tmp_path, given):
    script = tmp_path / "download.py"
    script.write_text(DOWNLOAD)
    done = tmpfs.run(tmp_path / "disk", 4 << 20, str(script), env=given)
    assert done.returncode == 0 and "as it should be" in done.stdout, done.stdout + done.stderr
