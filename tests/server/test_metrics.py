"""Meters of the chips, which are asked at each scrape."""

from prometheus_client import CollectorRegistry, generate_latest

from server.metrics import TpuCollector, tpu_usage


def test_each_chip_has_its_lines():
    registry = CollectorRegistry()
    answers = [(0, 10, 100, 50.0), (1, 20, 100, 75.5)]
    registry.register(TpuCollector(lambda: answers))
    text = generate_latest(registry).decode()
    assert 'wan_tpu_hbm_used_bytes{device="1"} 20.0' in text
    assert 'wan_tpu_hbm_total_bytes{device="0"} 100.0' in text
    assert 'wan_tpu_duty_cycle_percent{device="1"} 75.5' in text
    answers.clear()
    assert "device=" not in generate_latest(registry).decode()


def test_without_a_chip_there_is_nothing_to_ask():
    assert tpu_usage() is None
