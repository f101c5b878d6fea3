# SPDX-License-Identifier: Apache-2.0
"""What viv tells about itself and its host."""
import json
import re


def test_version(empty_viv):
    assert empty_viv.ok("version").stdout.split()
    assert json.loads(empty_viv.ok("version", "--json").stdout)


def test_doctor_tells_each_engine_and_its_speed(empty_viv):
    text = empty_viv.ok("doctor", limit=120).stdout
    without = {"dbt": "not measured", "kvm": "not measured|/dev/kvm cannot be opened"}
    for engine, why in without.items():
        assert re.search(rf"engine {engine} .*(\d million instructions a second|{why})", text), text
    assert json.loads(empty_viv.ok("doctor", "--json", limit=120).stdout)


def test_list_of_nothing(empty_viv):
    assert empty_viv.list() == []
    assert empty_viv.ok("list").returncode == 0


def test_images(viv):
    assert "debian" in viv.ok("image", "list").stdout
    assert [i["name"] for i in json.loads(viv.ok("image", "list", "--json").stdout)] == ["debian"]
