"""Which architecture and normalisation the models of RobustBench have, by data set, threat and id.

Facts only, read from RobustBench's model zoo. Ids whose architecture is not here are left out: ensembles, networks with
normalised features or learnt activations, ResNeXt, ResNeSt, XCiT and others.
"""

from __future__ import annotations

from dataclasses import dataclass

Channels = tuple[float, ...]
Norm = tuple[Channels, Channels]

NONE: Norm = ((0.0,) * 3, (1.0,) * 3)
HALF: Norm = ((0.5,) * 3, (0.5,) * 3)
CIFAR: Norm = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
C100: Norm = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET: Norm = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ENGSTROM: Norm = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
AUGUSTIN: Norm = ((0.49139975, 0.48215856, 0.44653091), (0.24703225, 0.24348516, 0.26158784))
RONY: Norm = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
C100_CHEN: Norm = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
C100_LONG: Norm = ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047))


@dataclass(frozen=True)
class Known:
    """A network of RobustBench.

    Attributes:
        architecture: of `_cifar_nets`, or of torchvision for ImageNet.
        norm: mean and std for pixels in [0, 1].
        size: to which images are resized; only for ImageNet.
    """

    architecture: str
    norm: Norm = NONE
    size: int | None = None


def _of(architecture: str, ids: str, norm: Norm = NONE) -> dict[str, Known]:
    return {name: Known(architecture, norm) for name in ids.split()}


CIFAR10_LINF = {
    **_of(
        "wrn-28-10",
        "Carmon2019Unlabeled Sehwag2020Hydra Wang2020Improving Wu2020Adversarial_extra Zhang2020Geometry "
        "Sridhar2021Robust Standard",
    ),
    **_of("wrn-28-10", "Hendrycks2019Using", HALF),
    **_of(
        "wrn-34-10",
        "Zhang2019Theoretically Huang2020Self Zhang2019You Zhang2020Attacks Wu2020Adversarial Sehwag2021Proxy "
        "Sitawarin2020Improving Cui2020Learnable_34_10 Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10 "
        "Jia2022LAS-AT_34_10 Addepalli2022Efficient_WRN_34_10",
    ),
    **_of("wrn-34-10", "Chen2020Efficient", CIFAR),
    **_of("wrn-34-15", "Sridhar2021Robust_34_15"),
    **_of("wrn-34-20", "Cui2020Learnable_34_20 Chen2021LTD_WRN34_20"),
    **_of("wrn-34-20", "Rice2020Overfitting", CIFAR),
    **_of("wrn-70-16", "Jia2022LAS-AT_70_16"),
    **_of("resnet-18", "Sehwag2021Proxy_R18 Addepalli2021Towards_RN18 Addepalli2022Efficient_RN18"),
    **_of("resnet-50", "Engstrom2019Robustness", ENGSTROM),
    **_of("preact-18-raw", "Andriushchenko2020Understanding"),
    **_of("preact-18-raw", "Wong2020Fast", CIFAR),
    **_of(
        "swish-wrn-28-10",
        "Gowal2020Uncovering_28_10_extra Rebuffi2021Fixing_28_10_cutmix_ddpm Rade2021Helper_ddpm "
        "Gowal2021Improving_28_10_ddpm_100m Pang2022Robustness_WRN28_10 Wang2023Better_WRN-28-10 "
        "Xu2023Exploring_WRN-28-10",
        CIFAR,
    ),
    **_of("swish-wrn-34-10", "Rade2021Helper_extra", CIFAR),
    **_of("swish-wrn-34-20", "Gowal2020Uncovering_34_20", CIFAR),
    **_of(
        "swish-wrn-70-16",
        "Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra Rebuffi2021Fixing_70_16_cutmix_ddpm "
        "Rebuffi2021Fixing_70_16_cutmix_extra Gowal2021Improving_70_16_ddpm_100m Pang2022Robustness_WRN70_16 "
        "Wang2023Better_WRN-70-16",
        CIFAR,
    ),
    **_of("swish-wrn-106-16", "Rebuffi2021Fixing_106_16_cutmix_ddpm", CIFAR),
    **_of(
        "swish-preact-18",
        "Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_extra Rade2021Helper_R18_ddpm Gowal2021Improving_R18_ddpm_100m",
        CIFAR,
    ),
}
CIFAR10_L2 = {
    **_of("wrn-28-10", "Standard"),
    **_of("wrn-28-10", "Rony2019Decoupling", RONY),
    **_of("wrn-34-10", "Wu2020Adversarial Sehwag2021Proxy"),
    **_of("wrn-34-10", "Augustin2020Adversarial_34_10 Augustin2020Adversarial_34_10_extra", AUGUSTIN),
    **_of("resnet-18", "Sehwag2021Proxy_R18"),
    **_of("resnet-50", "Augustin2020Adversarial", AUGUSTIN),
    **_of("resnet-50", "Engstrom2019Robustness", ENGSTROM),
    **_of("preact-18", "Rice2020Overfitting", CIFAR),
    **_of("swish-wrn-28-10", "Rebuffi2021Fixing_28_10_cutmix_ddpm Wang2023Better_WRN-28-10", CIFAR),
    **_of(
        "swish-wrn-70-16",
        "Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm "
        "Rebuffi2021Fixing_70_16_cutmix_extra Wang2023Better_WRN-70-16",
        CIFAR,
    ),
    **_of("swish-preact-18", "Rebuffi2021Fixing_R18_cutmix_ddpm Rade2021Helper_R18_ddpm", CIFAR),
}
CIFAR10_CORRUPTIONS = {
    **_of("wrn-28-10", "Standard"),
    **_of("wrn-34-10", "Addepalli2021Towards_WRN34 Addepalli2022Efficient_WRN_34_10"),
    **_of("wrn-40-2", "Hendrycks2020AugMix_WRN", HALF),
    **_of(
        "preact-18",
        "Kireev2021Effectiveness_Gauss50percent Kireev2021Effectiveness_AugMixNoJSD Kireev2021Effectiveness_RLAT "
        "Kireev2021Effectiveness_RLATAugMixNoJSD Kireev2021Effectiveness_RLATAugMix",
        CIFAR,
    ),
    **_of(
        "swish-wrn-70-16",
        "Rebuffi2021Fixing_70_16_cutmix_extra_Linf Rebuffi2021Fixing_70_16_cutmix_extra_L2",
        CIFAR,
    ),
}
CIFAR100_LINF = {
    **_of(
        "wrn-34-10",
        "Cui2020Learnable_34_10_LBGAT0 Cui2020Learnable_34_10_LBGAT6 Sitawarin2020Improving "
        "Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10",
    ),
    **_of("wrn-34-10", "Chen2020Efficient", C100_CHEN),
    **_of("wrn-34-10", "Wu2020Adversarial", C100_LONG),
    **_of("wrn-34-20", "Cui2020Learnable_34_20_LBGAT6"),
    **_of("wrn-28-10", "Hendrycks2019Using", HALF),
    **_of("preact-18", "Rice2020Overfitting", C100_LONG),
    **_of("preact-18", "Addepalli2021Towards_PARN18"),
    **_of("swish-wrn-28-10", "Rebuffi2021Fixing_28_10_cutmix_ddpm", C100),
    **_of(
        "swish-wrn-70-16",
        "Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm",
        C100,
    ),
    **_of("swish-preact-18", "Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_ddpm", C100),
}
IMAGENET_LINF = {
    "Wong2020Fast": Known("resnet50", IMAGENET, 288),
    "Engstrom2019Robustness": Known("resnet50", IMAGENET, 224),
    "Salman2020Do_R50": Known("resnet50", IMAGENET, 224),
    "Salman2020Do_R18": Known("resnet18", IMAGENET, 224),
    "Salman2020Do_50_2": Known("wide_resnet50_2", IMAGENET, 224),
    "Standard_R50": Known("resnet50", IMAGENET, 224),
}
IDS: dict[tuple[str, str], dict[str, Known]] = {
    ("cifar10", "Linf"): CIFAR10_LINF,
    ("cifar10", "L2"): CIFAR10_L2,
    ("cifar10", "corruptions"): CIFAR10_CORRUPTIONS,
    ("cifar100", "Linf"): CIFAR100_LINF,
    ("imagenet", "Linf"): IMAGENET_LINF,
}
