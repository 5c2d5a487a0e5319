from serve_app.metrics import REQUESTS, TEXTS, Meter


def test_counts_come_together_until_they_are_drained() -> None:
    meter = Meter()
    meter.add(TEXTS, 3)
    meter.add(TEXTS, 2)
    meter.add(REQUESTS, 1, "200")
    meter.add(REQUESTS, 1, "429")
    drained = {(m.name, tags): amount for (m, tags), amount in meter.drain().items()}
    assert drained == {
        ("embedserve_texts", ()): 5,
        ("embedserve_requests", ("200",)): 1,
        ("embedserve_requests", ("429",)): 1,
    }
    assert meter.drain() == {}
