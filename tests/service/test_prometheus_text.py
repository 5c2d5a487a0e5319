"""The pages of several nodes become one, in which histograms are valid."""

from prometheus_client.parser import text_string_to_metric_families

from serve_app.service.prometheus_text import merge_pages

#: As Ray's agents export them: the parts of a histogram are gauges, in any order.
PAGE = """\
# HELP ray_embedserve_batch_size_texts_sum Texts in a computed batch.
# TYPE ray_embedserve_batch_size_texts_sum gauge
ray_embedserve_batch_size_texts_sum{{model="m",replica="{replica}"}} 7.0
# HELP ray_embedserve_batch_size_texts_bucket Texts in a computed batch.
# TYPE ray_embedserve_batch_size_texts_bucket gauge
ray_embedserve_batch_size_texts_bucket{{le="+Inf",model="m",replica="{replica}"}} 3.0
ray_embedserve_batch_size_texts_bucket{{le="16.0",model="m",replica="{replica}"}} 3.0
ray_embedserve_batch_size_texts_bucket{{le="2.0",model="m",replica="{replica}"}} 2.0
# HELP ray_embedserve_batch_size_texts_count Texts in a computed batch.
# TYPE ray_embedserve_batch_size_texts_count gauge
ray_embedserve_batch_size_texts_count{{model="m",replica="{replica}"}} 3.0
# HELP ray_embedserve_texts_total Texts.
# TYPE ray_embedserve_texts_total counter
ray_embedserve_texts_total{{model="m",replica="{replica}"}} 9.0
# HELP ray_serve_other Not of the service.
# TYPE ray_serve_other gauge
ray_serve_other 1.0
"""


def test_histograms_of_several_nodes_are_one_family() -> None:
    page = merge_pages([PAGE.format(replica="a"), PAGE.format(replica="b")])
    histogram, texts = sorted(text_string_to_metric_families(page), key=lambda f: f.name)
    assert (histogram.name, histogram.type) == ("ray_embedserve_batch_size_texts", "histogram")
    assert (texts.name, texts.type) == ("ray_embedserve_texts", "counter")
    name = histogram.name
    expected = [
        (f"{name}_bucket", "2.0", 2),
        (f"{name}_bucket", "16.0", 3),
        (f"{name}_bucket", "+Inf", 3),
        (f"{name}_sum", None, 7),
        (f"{name}_count", None, 3),
    ]
    samples = [(s.name, s.labels.get("le"), s.value) for s in histogram.samples]
    assert samples == expected * 2
    assert [s.labels["replica"] for s in histogram.samples] == ["a"] * 5 + ["b"] * 5


def test_each_metric_has_one_type_and_its_lines_are_together() -> None:
    lines = merge_pages([PAGE.format(replica="a"), PAGE.format(replica="b")]).splitlines()
    headers = [line.split(" ")[:3] for line in lines if line.startswith("# ")]
    assert len(headers) == 4
    names = [line.split(" ")[2] for line in lines if line.startswith("# TYPE")]
    assert names == ["ray_embedserve_texts_total", "ray_embedserve_batch_size_texts"]


def test_labels_that_ray_fills_with_nothing_are_no_bounds() -> None:
    page = PAGE.format(replica="a")
    filled = page.replace("_sum{", '_sum{le="",').replace("_count{", '_count{le="",')
    name = "ray_embedserve_batch_size_texts_bucket"
    without = f'{name}{{le="+Inf"'
    assert without in filled
    filled = filled.replace(without, f'{name}{{le="",model="",replica=""}} 0.0\n{without}', 1)
    assert merge_pages([filled]) == merge_pages([page])


def test_a_tag_may_hold_separators_of_lines() -> None:
    name = "ray_embedserve_texts_total"
    line = f'{name}{{model="a\u2028b\x85c"}} 3.0'
    assert line in merge_pages([f"# TYPE {name} counter\n{line}\n"]).split("\n")


def test_tags_may_look_like_the_format() -> None:
    name = "ray_embedserve_request_duration_seconds_bucket"
    line = f'{name}{{le="1.0",route="/a/{{model}}/ le=\\"2\\""}} 3.0'
    assert line in merge_pages([f"# TYPE {name} gauge\n{line}\n"]).splitlines()
