"""Names of cards: what clouds and drivers say, what people ask for, and what must never merge."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.gpus import UnknownGpu, all_gpus, find, identify, parse_selector

# What RunPod's API calls its cards, with the GB that it states beside them.
RUNPOD = {
    "AMD Instinct MI300X OAM": ("MI300X", 192),
    "NVIDIA A100 80GB PCIe": ("A100-80GB-PCIe", 80),
    "NVIDIA A100-SXM4-80GB": ("A100-80GB-SXM", 80),
    "NVIDIA A30": ("A30", 24),
    "NVIDIA B200": ("B200-180GB-SXM", 180),
    "NVIDIA B300 SXM6 AC": ("B300-288GB-SXM", 288),
    "NVIDIA GeForce RTX 3080 Ti": ("RTX-3080-Ti", 12),
    "NVIDIA GeForce RTX 3080TI": ("RTX-3080-Ti", 12),
    "NVIDIA GeForce RTX 3090": ("RTX-3090", 24),
    "NVIDIA GeForce RTX 3090 Ti": ("RTX-3090-Ti", 24),
    "NVIDIA GeForce RTX 4080 SUPER": ("RTX-4080-SUPER", 16),
    "NVIDIA GeForce RTX 4090": ("RTX-4090", 24),
    "NVIDIA H100 80GB HBM3": ("H100-80GB-SXM", 80),
    "NVIDIA H100 NVL": ("H100-94GB-NVL", 94),
    "NVIDIA H100 PCIe": ("H100-80GB-PCIe", 80),
    "NVIDIA H200": ("H200-141GB-SXM", 141),
    "NVIDIA H200 NVL": ("H200-141GB-NVL", 143),
    "NVIDIA L40S": ("L40S", 48),
    "NVIDIA RTX 4000 Ada Generation": ("RTX-4000-Ada", 20),
    "NVIDIA RTX 4000 SFF Ada Generation": ("RTX-4000-SFF-Ada", 20),
    "NVIDIA RTX 6000 Ada Generation": ("RTX-6000-Ada", 48),
    "NVIDIA RTX A6000": ("RTX-A6000", 48),
    "NVIDIA  RTX A4500": ("RTX-A4500", 20),
    "NVIDIA RTX PRO 4500 Blackwell": ("RTX-PRO-4500", 32),
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": ("RTX-PRO-6000-Max-Q", 96),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": ("RTX-PRO-6000-Server", 96),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 1g.24gb": ("RTX-PRO-6000-MIG-24GB", 24),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 2g.48gb": ("RTX-PRO-6000-MIG-48GB", 48),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": ("RTX-PRO-6000-Workstation", 96),
    "Tesla V100-PCIE-16GB": ("V100-16GB-PCIe", 16),
    "Tesla V100-SXM2-32GB": ("V100-32GB-SXM", 32),
    "Tesla V100-FHHL-16GB": ("V100-16GB-FHHL", 16),
    "NVIDIA A5000 Ada": ("RTX-5000-Ada", 32),
}

# What Vast.ai calls them, with the MiB that it reports or the nominal GB times 1024.
VASTAI = {
    ("A100 SXM4", 81920): "A100-80GB-SXM",
    ("A100 SXM4", 40960): "A100-40GB-SXM",
    ("A100 PCIE", 40960): "A100-40GB-PCIe",
    ("H100 SXM", 81559): "H100-80GB-SXM",
    ("H100 PCIE", 81559): "H100-80GB-PCIe",
    ("H100 NVL", 95830): "H100-94GB-NVL",
    ("GH200 SXM", 97871): "GH200-96GB",
    ("RTX 4090", 24564): "RTX-4090",
    ("RTX 4090D", 24564): "RTX-4090-D",
    ("RTX 4070S Ti", 16376): "RTX-4070-Ti-SUPER",
    ("RTX 4070 Ti", 12282): "RTX-4070-Ti",
    ("RTX 4060 Ti", 16380): "RTX-4060-Ti-16GB",
    ("RTX 4060 Ti", 8188): "RTX-4060-Ti-8GB",
    ("RTX 3060", 12288): "RTX-3060-12GB",
    ("RTX 5090", 32607): "RTX-5090",
    ("RTX A5000", 24564): "RTX-A5000",
    ("RTX 6000Ada", 49140): "RTX-6000-Ada",
    ("Q RTX 6000", 24576): "Quadro-RTX-6000",
    ("RTX PRO 6000 S", 97887): "RTX-PRO-6000-Server",
    ("RTX PRO 6000 WS", 97887): "RTX-PRO-6000-Workstation",
    ("Tesla V100", 16384): "V100-16GB",
    ("Tesla V100", 32768): "V100-32GB",
    ("Tesla T4", 15360): "T4",
    ("GTX 1660 S", 6144): "GTX-1660-SUPER",
    ("InstinctMI250X", 131072): "MI250X",
    ("B200", 183359): "B200-180GB-SXM",
}


@pytest.mark.parametrize(("reported", "expected"), RUNPOD.items())
def test_runpod_names(reported: str, expected: tuple[str, float]) -> None:
    found = identify(reported, expected[1])
    assert found is not None
    assert found.name == expected[0]
    assert find(reported) == found


@pytest.mark.parametrize(("reported", "expected"), VASTAI.items())
def test_vastai_names(reported: tuple[str, int], expected: str) -> None:
    name, mib = reported
    for vram in (mib / 1024, mib * 1.048576 / 1000):  # GiB, and GB
        found = identify(name, vram)
        assert found is not None
        assert found.name == expected
    assert identify(name.replace(" ", "_"), mib / 1024) == identify(name, mib / 1024)


def test_every_type_of_ec2_is_known_or_a_named_fraction() -> None:
    folder = os.environ.get("GPUCTL_CONTRACTS")
    if not folder or not (Path(folder) / "aws_gpu_types.json").exists():
        pytest.skip("GPUCTL_CONTRACTS names no folder with aws_gpu_types.json")
    rows = json.loads((Path(folder) / "aws_gpu_types.json").read_text())["rows"]
    for row in rows:
        gpu = identify(row["gpu"], row["gpu_mem_mib"] / 1024)
        if row["gpu_fraction"] < 1:
            assert gpu is None, row["type"]  # a slice of an L4 is no L4
        else:
            assert gpu is not None, row["type"]


@pytest.mark.parametrize(
    "text",
    ["RTX-4090", "rtx4090", "RTX 4090", "rtx_4090", "NVIDIA GeForce RTX 4090", "GEFORCE-RTX-4090"],
)
def test_find_does_not_mind_case_spaces_and_dashes(text: str) -> None:
    assert find(text).name == "RTX-4090"


def test_variants_are_never_merged() -> None:
    apart = [
        ("RTX 3090", "RTX 3090 Ti"),
        ("RTX 4070", "RTX 4070 SUPER", "RTX 4070 Ti", "RTX 4070 Ti SUPER"),
        ("RTX 4090", "RTX 4090 D"),
        ("RTX A6000", "RTX 6000 Ada", "Quadro RTX 6000", "RTX PRO 6000"),
        ("RTX A4000", "RTX 4000 Ada", "RTX 4000 SFF Ada", "Quadro RTX 4000", "RTX PRO 4000"),
        ("A10", "A10G", "A100X"),
        ("T4", "T4G"),
        ("L40", "L40S", "L4"),
        ("TITAN X", "GTX TITAN X", "TITAN Xp"),
        ("Tesla P4", "Quadro P4000", "P40"),
    ]
    for names in apart:
        assert len({find(name).name for name in names}) == len(names)


@pytest.mark.parametrize("name", ["A100", "H100", "RTX-3060", "V100", "A100-PCIe"])
def test_a_family_is_not_one_card(name: str) -> None:
    with pytest.raises(UnknownGpu, match="more than one card") as caught:
        find(name)
    assert len(caught.value.suggestions) > 1
    assert identify(name) is None


def test_the_form_is_not_guessed() -> None:
    unknown_form = identify("A100", 40)
    assert unknown_form is not None
    assert unknown_form.name == "A100-40GB"
    assert not parse_selector("A100-40GB-SXM").matches("A100-40GB", 40)
    assert parse_selector("A100-40GB").matches("A100-40GB", 40)


@pytest.mark.parametrize(
    ("name", "vram"),
    [
        ("RTX 4090", 48),  # rebuilt cards of that name exist
        ("RTX 4090", 12),
        ("NVIDIA A100-SXM4-80GB", 40),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40),
        ("L4", 2.8),
        ("unknown", 24),
        ("RTX 4090 Ti", 24),
        ("", 24),
    ],
)
def test_what_is_not_certain_is_nobody_but_matches_by_size(name: str, vram: float) -> None:
    assert identify(name, vram) is None
    assert parse_selector("24GB+").matches(name, vram) == (vram >= 24)
    assert not parse_selector("RTX-4090").matches(name, vram)


def test_a_request_matches_all_that_it_leaves_open() -> None:
    request = parse_selector("A100-40GB")
    assert request.matches("A100-40GB-PCIe", 40)
    assert request.matches("A100-40GB-SXM", 40)
    assert request.matches("NVIDIA A100-SXM4-40GB", 39.4)
    assert not request.matches("A100-80GB-SXM", 80)
    assert not request.matches("A100 SXM4", 80)
    assert parse_selector("H200").matches("H200-141GB-NVL", 141)
    assert parse_selector("A100-PCIe").matches("A100-80GB-PCIe", 80)
    assert not parse_selector("RTX-4070").matches("RTX-4070-Ti", 12)
    assert not request.matches(None, 40)


def test_sizes() -> None:
    size = parse_selector("24GB+")
    assert parse_selector("24 gb").min_vram_gb == size.min_vram_gb == 24
    assert size.matches("L4", 22.35)  # 22888 MiB, sold as 24 GB
    assert size.matches("a card of next year", 22.4)
    assert not size.matches("a card of next year", 20)
    assert not size.matches("RTX-4080", 16)
    assert not size.matches(None, None)
    assert parse_selector("80GB+").matches("H100 SXM", 81559 / 1024)
    assert not parse_selector("48GB+").matches("A100-40GB-SXM", 40)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("RTX-4090-Ti", "RTX-3090-Ti"),
        ("H10", "H100-80GB-SXM"),
        ("A100-60GB", "A100-80GB-SXM"),
        ("RTX 6000", "RTX-A6000"),
        ("A1000", "A100-40GB"),
    ],
)
def test_a_mistake_gets_suggestions(text: str, near: str) -> None:
    with pytest.raises(UnknownGpu, match=re.escape(text)) as caught:
        parse_selector(text)
    assert near in caught.value.suggestions
    assert isinstance(caught.value, ValueError)


def test_bf16() -> None:
    able = {gpu.name for gpu in all_gpus() if gpu.bf16}
    assert {"A10G", "RTX-3060-12GB", "L4", "H100-80GB-SXM", "MI300X", "RTX-5090"} <= able
    assert not {"T4", "V100-16GB", "RTX-2080-Ti", "P100-16GB", "MI50-16GB"} & able
    assert find("A100-80GB-SXM").compute_capability == "8.0"
    assert find("A40").compute_capability == "8.6"


def test_names_and_aliases_lead_to_their_card() -> None:
    cards = all_gpus()
    assert len({gpu.name for gpu in cards}) == len(cards) > 150
    for gpu in cards:
        assert find(gpu.name) == gpu
        assert identify(gpu.name, gpu.vram_gb) == gpu
        assert parse_selector(gpu.name).matches(gpu.name, gpu.vram_gb)
        for alias in gpu.aliases:
            assert identify(alias, gpu.vram_gb) is not None, alias


@given(st.sampled_from(all_gpus()), st.floats(min_value=-0.07, max_value=0.075))
def test_what_is_reported_a_little_off_is_the_same_card(gpu: object, off: float) -> None:
    assert isinstance(gpu, type(all_gpus()[0]))
    assert identify(gpu.name, gpu.vram_gb * (1 + off)) == gpu


@given(st.text(max_size=40), st.none() | st.floats(min_value=0, max_value=1000))
def test_any_text_is_a_card_or_nothing(text: str, vram: float | None) -> None:
    gpu = identify(text, vram)
    assert gpu is None or find(gpu.name) == gpu
    try:
        selector = parse_selector(text)
    except UnknownGpu:
        return
    assert selector.names or selector.min_vram_gb is not None


@given(
    st.floats(min_value=1, max_value=300),
    st.floats(min_value=1, max_value=300),
    st.sampled_from(all_gpus()),
)
def test_a_smaller_size_never_matches_less(one: float, two: float, gpu: object) -> None:
    assert isinstance(gpu, type(all_gpus()[0]))
    small, big = sorted((one, two))
    if parse_selector(f"{big:.1f}GB+").matches(gpu.name, gpu.vram_gb):
        assert parse_selector(f"{small:.1f}GB+").matches(gpu.name, gpu.vram_gb)
