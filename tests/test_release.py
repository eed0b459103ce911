"""Do the files around a release agree with the package and with each other?"""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def actions(path: Path) -> set[str]:
    return set(re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8")))


def test_the_citation_names_this_version_and_its_authors():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert PROJECT["description"].split()[0].lower() in citation["title"].lower()


def test_the_changelog_has_this_version_as_a_release():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert any(
        re.fullmatch(rf"{re.escape(PROJECT['version'])}( - \d{{4}}-\d\d-\d\d)?", heading) for heading in headings
    )


def test_actions_are_pinned_and_publishing_uses_no_further_ones():
    every = {path.name: actions(path) for path in WORKFLOWS.glob("*.yaml")}
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for found in every.values() for action in found)
    assert every["publish.yaml"] <= every["test.yaml"] | every["docs.yaml"]


def test_publishing_needs_a_tag_and_no_password():
    workflow = read(WORKFLOWS / "publish.yaml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key "on" as True
    assert workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read", "id-token": "write"}
    assert "secrets." not in (WORKFLOWS / "publish.yaml").read_text(encoding="utf-8")


def test_issue_forms_can_be_read():
    forms = [read(path) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yaml")]
    assert len(forms) == 2
    for form in forms:
        assert {"name", "description", "body"} <= set(form)
        assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])
        assert len({part["id"] for part in form["body"]}) == len(form["body"])
