"""Memory and disk are checked before anything is loaded.

The messages say how much the run needs and how much is free.
"""

from pathlib import Path

import pytest

from estune.common import resources
from estune.errors import InputError, ResourceError

GIB, MIB = 1 << 30, 1 << 20


def test_enough_memory_passes_in_silence(monkeypatch, capsys):
    monkeypatch.setattr(resources, "available_memory", lambda: 4 * GIB)
    resources.check_memory(4 * GIB, "the weights")
    assert capsys.readouterr() == ("", "")


def test_too_little_memory_names_both_amounts_what_needs_it_and_the_ways_out(monkeypatch):
    monkeypatch.setattr(resources, "available_memory", lambda: int(1.5 * GIB))
    with pytest.raises(ResourceError) as refusal:
        resources.check_memory(28 * GIB, "θ and the engine's weights of org/model")
    message = str(refusal.value)
    assert message.startswith(
        "memory: θ and the engine's weights of org/model need 28.0 GiB, 1.5 GiB are available"
    )
    assert all(way in message for way in ("smaller model", "bfloat16", "target_parameters"))


def test_too_little_disk_names_both_amounts_the_folder_and_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "free_disk", lambda folder: 512 * MIB)
    with pytest.raises(ResourceError) as refusal:
        resources.check_disk(tmp_path, 3 * GIB, "the checkpoints", advice="keep fewer")
    assert str(refusal.value) == (
        f"disk: the checkpoints need 3.0 GiB in {tmp_path}, 512.0 MiB are free; "
        "choose another output_dir, or keep fewer"
    )


def test_a_full_disk_is_answered_without_advice_that_the_command_does_not_have(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(resources, "free_disk", lambda folder: 512 * MIB)
    with pytest.raises(ResourceError, match="choose another output$"):
        resources.check_disk(tmp_path, GIB, "the checkpoint", setting="output")


def test_exactly_enough_disk_is_enough(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "free_disk", lambda folder: 3 * GIB)
    resources.check_disk(tmp_path, 3 * GIB, "the checkpoints")


def test_the_disk_check_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    folder = tmp_path / "new" / "run"
    resources.check_disk(folder, 1, "the checkpoints")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_with_the_systems_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError) as refusal:
        resources.check_disk(tmp_path / "file" / "run", 1, "the checkpoints")
    assert (
        str(refusal.value)
        == f"output_dir: {tmp_path}/file/run cannot be written (Not a directory); choose another"
    )


def test_a_disk_refusal_names_the_setting_that_gave_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"^output: .*choose another"):
        resources.check_disk(tmp_path / "file" / "run", 1, "the checkpoint", setting="output")


def test_a_resource_error_is_an_input_error_and_an_os_error():
    assert issubclass(ResourceError, InputError)
    assert issubclass(ResourceError, OSError)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0.0 MiB"),
        (80 * 1024, "0.1 MiB"),
        (512 * MIB, "512.0 MiB"),
        (GIB, "1.0 GiB"),
        (140 * GIB, "140.0 GiB"),
    ],
)
def test_amounts_are_in_gib_and_small_ones_in_mib(size, shown):
    assert resources.amount(size) == shown


def test_the_machine_has_memory_disk_and_cores():
    assert resources.available_memory() > 0
    assert resources.free_disk(Path("/")) > 0
    assert resources.cores() >= 1


def test_pages_of_files_count_as_free_in_a_container(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text(
        "anon 300\ninactive_file 250\nactive_file 100\nshmem 50\n"
    )
    assert resources._left_in_container(tmp_path) == 650


def test_a_container_without_a_limit_has_what_the_machine_has(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    with pytest.raises(ValueError, match="max"):
        resources._left_in_container(tmp_path)


def test_freed_memory_is_released_on_any_system(monkeypatch):
    resources.release_freed_memory()
    monkeypatch.setattr(resources.ctypes, "CDLL", lambda name: object())  # a C library without it
    resources.release_freed_memory()
