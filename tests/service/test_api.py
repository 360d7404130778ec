"""What the service answers is what its OpenAPI description says, for requests that schemathesis makes from it.

MCFHE_API_EXAMPLES (default 15) is how many it tries of each kind and operation; ``make soak`` asks for more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from mcfhe.service.openapi import describe
from mcfhe.service.settings import ServiceSettings
from tests.service.support import Live

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install 'mcfhe[dev]'")

from schemathesis.specs.openapi import checks  # noqa: E402

EXAMPLES = int(os.environ.get("MCFHE_API_EXAMPLES", "15"))
# That most octets are no message is nothing a schema can say, and 413 is not among the refusals the second one knows.
EXCLUDED = [checks.positive_data_acceptance, checks.negative_data_rejection]
TOKEN = "a-token-of-this-test"
OPERATIONS = [
    (path, method)
    for path, item in describe(ServiceSettings())["paths"].items()
    for method in item
    if method != "parameters"
]


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    with Live(tokens=[TOKEN], max_body_bytes=1 << 16) as live:
        yield schemathesis.openapi.from_url(f"{live.url}/openapi.json")


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_the_description_holds(api: Any, path: str, method: str, mode: str) -> None:
    """Status, content type and body are among those described; never a 5xx; no answer without the token."""
    operation = api[path][method]
    modes = schemathesis.GenerationMode
    strategy = operation.as_strategy(generation_mode=modes.POSITIVE if mode == "positive" else modes.NEGATIVE)

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def check(case: Any) -> None:
        answer = case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=EXCLUDED)
        assert method == "get" or 400 <= answer.status_code < 500  # no octets made here are a message

    try:
        check()
    except Unsatisfiable:
        assert mode == "negative"  # nothing about this operation can be wrong
