"""The bundled digits: the documented pixels and the documented split, the same on every machine."""

from prepared import digits

from fastwi.beton import content_sha256


def test_content_is_the_recorded_one() -> None:
    recorded = [
        "4d89fb0a94eab468fd6bb354fe8b7ab42c2297448ec58b8eaa5485eb752030cc",
        "fad0f821313b33496285f712ac6677988a86405d5f4b324b33871ae3542b1010",
    ]
    assert [content_sha256(each.images_NHWC, each.labels_N) for each in (digits().train, digits().test)] == recorded
