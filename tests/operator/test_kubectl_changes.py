"""History, undo, restart and scale as pure changes of a group; errors that say what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from rbg_operator.kubectl.changes import as_yaml, role_changes, unified_diff
from rbg_operator.kubectl.edits import has_adapter, restarted, scaled
from rbg_operator.kubectl.errors import UnknownNameError
from rbg_operator.kubectl.history import choose, history, returning_roles, undone
from rbg_operator.kubectl.kubectl import explain
from rbg_operator.kubectl.logs import Prefixes, sources
from rbg_operator.kubectl.main import build_parser
from rbg_operator.kubectl.tables import history_table
from rbg_operator.plan import labels
from tests.operator.kubectl_objects import NOW, crashed, group, pod, spec_role


def spec(*roles: dict[str, Any]) -> dict[str, Any]:
    """A spec as revisions keep it."""
    return {"roles": [{key: value for key, value in role.items() if key != "replicas"} for role in roles]}


def image(role: dict[str, Any], name: str) -> dict[str, Any]:
    """The role with another image."""
    changed = copy.deepcopy(role)
    changed["template"]["spec"]["containers"][0]["image"] = name
    return changed


def revision(number: int, data: dict[str, Any]) -> dict[str, Any]:
    """A ControllerRevision."""
    metadata = {"name": f"vl-{number}", "creationTimestamp": "2026-11-21T12:10:00Z"}
    return {"metadata": metadata, "revision": number, "data": data}


A, B = spec_role("a", replicas=3), spec_role("b", "a")
GROUP = group(image(A, "epd:2"), spec_role("c"))
SPECS = (spec(A, B), spec(image(A, "epd:2"), B), spec(image(A, "epd:2"), spec_role("c")))
REVISIONS = [revision(number, data) for number, data in enumerate(SPECS, start=1)]


HISTORY = """\
REVISION  AGE     CHANGE
      1    5m      (first that is kept)
      2    5m      a: template.spec.containers[server].image epd:1 → epd:2
      3 *  5m      b: removed
                   c: added
* as the group is specified now"""


def test_history_says_what_changed() -> None:
    assert history_table(history(GROUP, REVISIONS), NOW, colour=False) == HISTORY


def test_undo_chooses_the_newest_other_revision_and_keeps_replicas() -> None:
    chosen = choose(history(GROUP, REVISIONS), None)
    assert chosen.number == 2
    back = undone(GROUP, chosen)
    assert [(role["name"], role.get("replicas")) for role in back["spec"]["roles"]] == [("a", 3), ("b", None)]
    assert back["metadata"] == GROUP["metadata"]
    assert returning_roles(GROUP, chosen) == ["b"]
    assert "replicas" not in REVISIONS[1]["data"]["roles"][0]


def test_undo_to_what_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match="no revision 9; kept are 1, 2, 3"):
        choose(history(GROUP, REVISIONS), 9)
    with pytest.raises(UnknownNameError, match="no earlier revision"):
        choose(history(GROUP, REVISIONS[2:]), None)


def test_changes_name_the_field() -> None:
    old, new = copy.deepcopy(spec(A)), copy.deepcopy(spec(A))
    new["roles"][0]["template"]["spec"]["containers"].append({"name": "sidecar"})
    new["roles"][0]["template"]["spec"]["containers"][0]["args"] = ["--a"]
    new["podGroupPolicy"] = {"kubeScheduling": {}}
    assert role_changes(old, new) == [
        "a: template.spec.containers[server].args added",
        "a: template.spec.containers[sidecar] added",
        "podGroupPolicy added",
    ]


def test_diff_reads_like_diff_u() -> None:
    assert unified_diff({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1]}}, "now", "then") == (
        "--- now\n+++ then\n@@ -1,4 +1,4 @@\n a:\n-  b: 1\n+  b: 2\n   c:\n     - 1\n"
    )
    assert unified_diff(GROUP, GROUP, "now", "then") == ""


def test_yaml_is_read_back_the_same() -> None:
    value = {"script": "a\nb\n", "text": "yes", "list": [{"x": None}], "number": "1"}
    assert yaml.safe_load(as_yaml(value)) == value
    shared = ["x"]
    assert "&" not in as_yaml({"a": shared, "b": shared})


def test_restart_marks_the_roles() -> None:
    roles = restarted(GROUP, ["a"], "2026-11-21T12:15:00Z")["spec"]["roles"]
    assert [role.get("annotations") for role in roles] == [{labels.RESTARTED_AT: "2026-11-21T12:15:00Z"}, None]
    assert all("annotations" in role for role in restarted(GROUP, [], "now")["spec"]["roles"])
    assert "annotations" not in GROUP["spec"]["roles"][0]


def test_scale_changes_replicas_only() -> None:
    roles = scaled(GROUP, {"c": 4})["spec"]["roles"]
    assert [role["replicas"] for role in roles] == [3, 4]
    assert has_adapter(group(spec_role("a", scalingAdapter={"enable": True})), "a")
    assert not has_adapter(GROUP, "a")


def test_unknown_roles_get_a_suggestion() -> None:
    encoders = group(spec_role("vlm-encoder"), spec_role("vlm-decode"))
    with pytest.raises(UnknownNameError, match='no role "vlm-encoders"; did you mean "vlm-encoder"'):
        scaled(encoders, {"vlm-encoders": 1})
    with pytest.raises(UnknownNameError, match='no role "x"; there are vlm-decode, vlm-encoder'):
        restarted(encoders, ["x"], "now")


@pytest.mark.parametrize(
    ("stderr", "reason", "message"),
    [
        ('Error from server (NotFound): pods "x" not found\n', "NotFound", 'pods "x" not found'),
        ('Error from server (Conflict): error when replacing "STDIN": the object has\nbeen modified', "Conflict",
         'error when replacing "STDIN": the object has been modified'),
        ("The request is invalid: the server rejected our request due to an error in our request", "Conflict",
         "edited meanwhile"),
        ("error: the server doesn't have a resource type \"rolebasedgroups\"", "NoKind", "install its CRDs"),
        ("The connection to the server localhost:8080 was refused - did you specify the right host or port?",
         "Unreachable", "is the context right"),
        ("error: You must be logged in to the server (Unauthorized)", "Unauthorized", "log in again"),
        ('error: context "x" does not exist\n', "", 'context "x" does not exist'),
        ("", "", "did not say why"),
    ],
)  # fmt: skip
def test_errors_of_kubectl_become_one_line(stderr: str, reason: str, message: str) -> None:
    error = explain(stderr, ["get"])
    assert error.reason == reason
    assert message in str(error)
    assert "\n" not in str(error)


def test_which_containers_have_printed_something() -> None:
    creating = {"name": "server", "state": {"waiting": {"reason": "ContainerCreating"}}}
    done = {"name": "fetch", "state": {"terminated": {"exitCode": 0}}}
    running = {"name": "server", "restartCount": 2}
    found = sources(
        [
            pod("a", 0, containerStatuses=[creating]),
            pod("a", 1, initContainerStatuses=[done], containerStatuses=[running, {"name": "side"}]),
            pod("a", 2, **crashed("Error", "", 1)),
        ]
    )
    assert [(source.pod, source.container, source.restarts, source.running) for source in found] == [
        ("vl-a-1", "server", 2, True),
        ("vl-a-1", "side", 0, True),
        ("vl-a-2", "server", 4, False),
    ]


def test_prefixes_line_up() -> None:
    one, two = [{"name": "server"}], [{"name": "x"}, {"name": "y"}]
    found = sources([pod("encoder", 10, containerStatuses=one), pod("a", containerStatuses=two)])
    prefixes = Prefixes("vl", colour=False)
    prefixes.learn(found)
    assert [prefixes.of(source) for source in found] == ["a-0/x      │ ", "a-0/y      │ ", "encoder-10 │ "]


@pytest.mark.parametrize(
    "line",
    ["status --bogus", "status -n", "scale g", "scale g a=-1", "scale g a", "scale g a=9999999", "rollout", "logs",
     "logs g --tail x", "status ../x", "rollout status g --timeout 5y", "rollout undo g --to-revision -1"],
)  # fmt: skip
def test_wrong_command_lines(line: str) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(line.split())
    assert caught.value.code == 2


def test_the_cluster_may_be_named_before_or_after_the_command() -> None:
    before = build_parser().parse_args(["-n", "ns", "--context", "c", "status", "g"])
    after = build_parser().parse_args(["status", "g", "-n", "ns", "--context", "c"])
    assert before == after
    assert (after.namespace, after.context) == ("ns", "c")
    assert build_parser().parse_args(["rollout", "status", "g", "--timeout", "1.5m"]).timeout == 90
