"""What the tests of the site's data share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorica.client.config.site import SiteConfig
from lorica.client.data.reading import read_records
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError

Read = Callable[..., Records]
Refused = Callable[..., str]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """``read(source=…, …)``: the records of a site with this [data], in the test's folder."""

    def reading(**data: Any) -> Records:
        config = SiteConfig.model_validate({"site": {"name": "north"}, "data": data})
        return read_records(config, tmp_path)

    return reading


@pytest.fixture
def refused(read: Read) -> Refused:
    """``refused(code, source=…, …)``: the detail of the coded error that reading ends with."""

    def refusing(code: Code, **data: Any) -> str:
        with pytest.raises(LoricaError) as caught:
            read(**data)
        assert caught.value.code is code, str(caught.value)
        assert caught.value.mend
        return caught.value.detail

    return refusing
