"""What Prometheus reads is what was counted."""

import extras

extras.needs("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from prompt_tune.services.batching import Pass  # noqa: E402
from prompt_tune.services.serve_metrics import ServeMetrics  # noqa: E402


def test_page_has_what_was_counted() -> None:
    metrics = ServeMetrics()
    metrics.started("cpu")
    metrics.answered("detect", 200, 0.02)
    metrics.answered("detect", 400, 0.001)
    metrics.passed(Pass(4, 3, (0.1, 0.2, 0.3), 0.05))
    metrics.page(in_work=9, waiting=9, classes={"old": 1})
    text = metrics.page(in_work=2, waiting=1, classes={"original": 80, "a\nb": 2}).decode()
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["prompt_tune_requests_total", "200", "detect"] == 1
    assert found["prompt_tune_requests_total", "400", "detect"] == 1
    assert found["prompt_tune_request_seconds_count", "detect"] == 2
    assert found["prompt_tune_batches_total", "4"] == 1
    assert found["prompt_tune_images_total",] == 3
    assert found["prompt_tune_stage_seconds_sum", "queue"] == 0.1 + 0.2 + 0.3
    assert found["prompt_tune_stage_seconds_count", "graph"] == 3
    assert found["prompt_tune_stage_seconds_count", "encode"] == 0
    assert (found["prompt_tune_requests_in_work",], found["prompt_tune_queue_images",]) == (2, 1)
    classes = {key[1:]: value for key, value in found.items() if key[0] == "prompt_tune_vocabulary_classes"}
    assert classes == {("original",): 80, ("a\nb",): 2}
    assert found["prompt_tune_info", *sorted((metrics_version(), "cpu"))] == 1
    assert found["process_resident_memory_bytes",] > 1e6


def metrics_version() -> str:
    from prompt_tune.version import __version__

    return __version__
