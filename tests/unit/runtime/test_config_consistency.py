import pytest

from dglpipe.errors import ConsistencyError
from dglpipe.runtime.config_consistency import code_version, compare, flatten


def test_a_difference_names_key_ranks_and_values():
    by_rank = [{"seed": 0, "epochs": 2}, {"seed": 1, "epochs": 2}, {"seed": 0, "epochs": 2}]
    with pytest.raises(ConsistencyError) as caught:
        compare(by_rank)
    assert "seed" in str(caught.value)
    assert "ranks [0, 2] have 0" in str(caught.value)
    assert "ranks [1] have 1" in str(caught.value)


def test_a_key_that_only_one_rank_has():
    with pytest.raises(ConsistencyError, match=r"head\.name"):
        compare([{"head.name": "mlp"}, {}])


def test_equal_ranks_agree():
    compare([{"seed": 0, "list": [1, {"a": 2}]}] * 3)


def test_nested_settings_get_dotted_keys():
    assert flatten({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": 1, "a.c": [2], "d": None}


def test_the_code_has_one_version():
    assert code_version() == code_version()
    assert len(code_version()) == 16


def test_nan_equals_nan():
    nan = float("nan")
    compare([{"a": nan, "b": [nan, 1]}, {"a": float("nan"), "b": [float("nan"), 1]}])
    with pytest.raises(ConsistencyError, match="disagree about a"):
        compare([{"a": nan}, {"a": 1.0}])
