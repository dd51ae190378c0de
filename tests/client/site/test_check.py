"""What ``lorica site check`` finds, one by one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorica.client.config.site import documented_site
from lorica.client.site.check import check_site
from lorica.common.backbone.files import backbone_sha256
from lorica.common.machine.checks import Finding


@pytest.mark.parametrize("case", ["allowed", "not allowed", "not there", "no model"])
def test_the_models_of_a_site_are_in_place_and_allowed(
    tmp_path: Path, small_backbone: Path, case: str
) -> None:
    (tmp_path / "records.csv").write_text("text,label\none,a\ntwo,b\n")
    (tmp_path / "empty").mkdir()
    folder = {"not there": "none", "no model": "empty"}.get(case, small_backbone.name)
    allowed = "0" * 64 if case == "not allowed" else f"{backbone_sha256(small_backbone)}:int8"
    text = documented_site("north", "records.csv")
    text = text.replace("backbone_folders = []", f'backbone_folders = ["{folder}"]')
    text = re.sub(r"(?m)^backbones = \[[^]]*\]", f'backbones = ["{allowed}"]', text)
    (tmp_path / "site.toml").write_text(text)
    found: Finding = next(f for f in check_site(tmp_path / "site.toml") if f.name == "models")
    assert found.ok is (case == "allowed"), found.text
    said = {
        "allowed": "in place and allowed",
        "not allowed": backbone_sha256(small_backbone),
        "not there": str(tmp_path / "none"),
        "no model": "LOR-201",
    }
    assert said[case] in found.text
