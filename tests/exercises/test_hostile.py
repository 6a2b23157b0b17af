"""Submissions that wish the grader ill (`hostile.py`): what each tries, and that it costs its own marks alone."""

import json
import platform
import subprocess
import sys

import pytest
from exercises.hostile import BY_NUMBER, COSTS, HARMLESS, REACHES, RIGHT, hostile, program, reaching, source
from exercises.marking import IDS, canaries, hand_in, marked

from lora_jax.exercises.grading import conversation, isolation

SECONDS = 5.0
shut_in = pytest.mark.skipif(not isolation.has_namespaces(), reason="this machine shuts nothing in: docs/teaching.md")
# Without a root of its own a submission has the rights of whoever runs this test, so that only these may run then.
ANYWHERE = (
    "loops", "sleeps", "raises", "raises_what_cannot_be_printed", "exits", "exits_at_once", "interrupts",
    "kills_itself", "overflows_the_stack", "patches_the_checker", "returns_an_object_that_equals_all",
    "returns_a_huge_array", "returns_a_list_in_itself", "returns_a_huge_number", "returns_a_function",
    "takes_all_memory", "prints_megabytes", "forks",
)  # fmt: skip
# Found on other machines under other numbers.
TRIED = {name: code for name, code in REACHES.items() if platform.machine() == "x86_64" or name not in BY_NUMBER}


def check(rows, names):
    """3.2 is what each of these costs, and nothing where it is harmless."""
    wrong = {}
    for name in names:
        says = COSTS[name][1] if name in COSTS else None
        marks = {id: int(says is None or id != "3.2") for id in IDS}
        if rows[name]["marks"] != marks or (says is not None and says not in rows[name]["remarks"][0]):
            wrong[name] = rows[name]
    assert not wrong


@shut_in
def test_nothing_outside_can_be_reached(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", "a secret")
    with canaries(tmp_path) as there:
        rows, _ = marked(hand_in(tmp_path / "in", {"all": reaching(TRIED, there)}), tmp_path, monkeypatch, seconds=120)
    assert (rows["all"]["total"], rows["all"]["remarks"]) == (5, [])


@shut_in
def test_without_a_filter_of_system_calls_the_root_still_holds(tmp_path, monkeypatch):
    """What only the filter refuses is memory that no process owns, and interfaces of the kernel."""
    monkeypatch.setattr(isolation, "has_filter", lambda: False)
    monkeypatch.setenv("CANARY", "a secret")
    only = {
        "adds_a_key", "reads_keys", "uses_io_uring", "counts_events", "handles_faults", "takes_a_descriptor", "traces",
        "makes_memory_files", "makes_shared_memory", "makes_a_message_queue", "asks_the_kernel", "sends_a_datagram",
        "reads_memory", "opens_by_handle", "enters_a_namespace",
    }  # fmt: skip
    tried = {name: code for name, code in TRIED.items() if name not in only}
    with canaries(tmp_path) as there:
        rows, _ = marked(hand_in(tmp_path / "in", {"all": reaching(tried, there)}), tmp_path, monkeypatch, seconds=120)
    assert (rows["all"]["total"], rows["all"]["remarks"]) == (5, [])


def costly(there):
    answers = {name: hostile(body) for name, (body, _) in COSTS.items()}
    return answers | {name: hostile(body.format(**there) if "{treasure" in body else body, "\n" + RIGHT)
                      for name, body in HARMLESS.items()}  # fmt: skip


@shut_in
@pytest.mark.slow
@pytest.mark.alone
def test_a_submission_costs_only_its_own_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(conversation, "MEMORY", 1_500_000_000)
    with canaries(tmp_path) as there:
        answers = costly(there)
        rows, table = marked(hand_in(tmp_path / "in", answers), tmp_path, monkeypatch, seconds=SECONDS)
    check(rows, answers)
    assert {row["submission"]: int(row["total"]) for row in table} == {name: row["total"] for name, row in rows.items()}


@shut_in
@pytest.mark.slow
@pytest.mark.alone
def test_the_same_for_a_user_who_is_not_root(tmp_path, monkeypatch):
    """The grader in a namespace where it is user 1000, who has no rights: it makes the same root."""
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    if subprocess.run([*user, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody be another user")
    monkeypatch.setenv("CANARY", "a secret")
    with canaries(tmp_path) as there:
        answers = costly(there) | {"reaches": reaching(TRIED, there)}
        # Outside it is whoever runs this test: of root the kernel does not count processes, and 4 GB would be much.
        del answers["forks_without_end"], answers["takes_memory_in_many_processes"]
        folder = hand_in(tmp_path / "in", answers)
        command = [
            sys.executable,
            "-m",
            "lora_jax",
            "grade",
            folder,
            "--notebooks",
            "3",
            "--json",
            "--seconds",
            SECONDS,
        ]
        done = subprocess.run([*user, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["submissions"]}
    assert rows["reaches"]["remarks"] == []
    check(rows, [name for name in answers if name != "reaches"])


@pytest.mark.slow
@pytest.mark.alone
def test_without_a_root_of_its_own_what_is_not_promised_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "has_namespaces", lambda: False)
    answers = {name: source(program(COSTS[name][0])) for name in ANYWHERE if name in COSTS}
    answers |= {name: source(program(HARMLESS[name], "\n" + RIGHT)) for name in ANYWHERE if name in HARMLESS}
    said = []
    rows, _ = marked(hand_in(tmp_path / "in", answers), tmp_path, monkeypatch, said.append, seconds=SECONDS)
    check(rows, answers)
    assert "this machine cannot shut them in: they reach the network and all that you can" in said[0]
