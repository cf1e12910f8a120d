import terra


def test_version():
    assert terra.__version__ == "0.1.0"
