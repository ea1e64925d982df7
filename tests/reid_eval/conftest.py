import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Nothing is kept in, or found in, the caches of whoever runs the tests."""
    monkeypatch.setenv("REID_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
    monkeypatch.delenv("REID_WEIGHTS", raising=False)
    monkeypatch.delenv("REID_OFFLINE", raising=False)
