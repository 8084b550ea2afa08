"""The identity of a driver."""

from __future__ import annotations

import pytest

from pipeline.store.driver import JOB_SETTINGS, describe_driver, is_ray_job, ray_job_id


def test_the_job_is_read_from_rays_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_SETTINGS, raising=False)
    assert ray_job_id() is None and not is_ray_job()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "smoke-1"}}')
    assert ray_job_id() == "smoke-1" and is_ray_job()
    assert describe_driver()["job"] == "smoke-1"
