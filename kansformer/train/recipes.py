"""Recipes: presets of settings for data sets, with the results that they gave.

Each recipe's docstring holds the exact command, how long it took and the accuracy it gave, or a
note that it has not been run yet.
"""

from typing import Any

# What training from --weights has in common. With batches of 64, 840 pictures make 13 steps of an
# epoch, too few. The moving average keeps the validation curve smooth, which otherwise jumps by 5
# points and more in the first epochs. Mixing and stochastic depth disturb features that were
# pretrained without them: a drop path of 0.1 raised the loss of a ViT-S from 0.33 to 0.80 before
# the first step.
FROM_WEIGHTS = {
    "batch_size": 16,
    "warmup_epochs": 1.0,
    "ema": 0.99,
    "mixup": 0.0,
    "cutmix": 0.0,
    "drop_path_rate": 0.0,
    "feature_views": 3,
}
# All layers take a lower learning rate, lower still in the first blocks.
FINE_TUNING = {**FROM_WEIGHTS, "lr": 1e-4, "layer_decay": 0.75}
# Splines, norms or biases alone. That of the splines is ten times as high, see `SPLINE_RATES`.
PART_TUNING = {**FROM_WEIGHTS, "lr": 1e-3}


def digits() -> dict[str, Any]:
    """scikit-learn's scans of digits, 8x8 pixels, as 16 tokens of overlapping patches.

    `python train.py --data-path digits`, 60 epochs: 98.33 % of 359 test pictures, and with
    seeds 1 and 2 99.16 and 99.16 %, in 92 to 122 s on one core of an Intel Xeon with torch 2.14.
    One core of an AMD EPYC with AVX-512 gave 98.33, 99.16 and 99.44 %, in 86 to 92 s; 2 cores of an
    EPYC without AVX-512 98.89, 99.16 and 98.89 %, the first in 173 s.
    """
    return {
        "model": "kansformer_micro_patch2_8",
        "stem": "conv",
        "augment": "digits",
        "val_split": 0.1,
        "epochs": 60,
        "batch_size": 64,
        "lr": 2e-3,
        "warmup_epochs": 3.0,
        "mixup": 0.4,
        "cutmix": 0.4,
        "ema": 0.99,
        "eval_metric": "loss",  # on 143 pictures, less noisy than accuracy
    }


def fashion_mnist() -> dict[str, Any]:
    """Fashion-MNIST, 28x28 pixels, at 32x32 as 16 overlapping patches.

    `python train.py --data-path /usr/share/datasets/fashion-mnist` (Debian's package
    dataset-fashion-mnist), 25 epochs: 92.19 % on the official 10,000 test pictures with 461,306
    parameters, in 1,694 s on one core of an Intel Xeon with torch 2.14, and 92.18 % in 1,557 s on
    one core of an AMD EPYC with AVX-512. With older kernels seeds 0 to 2 gave 92.23, 91.84 and
    92.47 %.
    """
    return {
        "model": "kansformer_micro_patch8_32",
        "stem": "conv",
        "augment": "mirror",
        "val_split": 0.1,
        "epochs": 25,
        "batch_size": 128,
        "lr": 2e-3,
        "warmup_epochs": 1.0,
        "label_smoothing": 0.0,
        "random_erasing": 0.1,
        "ema": 0.999,
    }


def mnist() -> dict[str, Any]:
    """MNIST, 28x28 pixels; the settings of Fashion-MNIST without mirroring. Not run yet."""
    return {**fashion_mnist(), "augment": "digits"}


def small_pictures() -> dict[str, Any]:
    """Pictures of up to 64 pixels, such as CIFAR-10's, at 32x32 as 64 overlapping patches.

    `python train.py --data-path cifar10-jpeg`, a folder with 20,000 training and 3,000 validation
    pictures of CIFAR-10 as JPEG files, 40 epochs: 75.03 % of the validation pictures, which also
    decided the best epoch (the 23rd; the last one had 74.03), with torch 2.14 on one core of an
    Intel Xeon; seeds 1 and 2 gave 76.60 and 75.70 % (76.00 and 74.50 % in the last epoch), the
    latter in 2,987 s. One core of an AMD EPYC with AVX-512 gave 74.27 % with seed 0 (73.57 % in the
    last epoch), in 3,009 s.
    """
    return {
        "model": "kansformer_micro_patch4_32",
        "stem": "conv",
        "augment": "small",
        "epochs": 40,
        "batch_size": 128,
        "lr": 2e-3,
        "warmup_epochs": 3.0,
        "ema": 0.995,
    }


def sign_digits() -> dict[str, Any]:
    """Photographs of hand signs for 0 to 9, 100x100 pixels, at 32x32 as 16 overlapping patches.

    `python split_data.py --data-path sign-digits --output sign-split --group-regex "IMG_(\\d\\d)"`,
    then `python train.py --data-path sign-split --recipe sign-digits`, 40 epochs: 97.83 % of 230
    test pictures, and with seeds 1 and 2 98.70 and 98.26 %, in 170 to 198 s on one core of an Intel
    Xeon with torch 2.14. One core of an AMD EPYC with AVX-512 gave 98.70, 98.26 and 97.83 %, in 141
    to 157 s; 2 cores of an EPYC without AVX-512 97.83, 99.57 and 98.70 %, the first in 229 s. 19 of
    the test pictures show a hand that is in another split too.
    """
    return {
        "model": "kansformer_micro_patch8_32",
        "stem": "conv",
        "augment": "signs",
        "epochs": 40,
        "batch_size": 64,
        "lr": 2e-3,
        "warmup_epochs": 5.0,
        "eval_metric": "loss",
    }


def photos() -> dict[str, Any]:
    """A folder of photographs from scratch: KANsformer-Tiny at 224x224. Not run yet.

    The default of `python train.py --data-path flower_photos --amp bf16` on a GPU. On 2 cores,
    3,000 pictures would take about 8 hours, by the time of a step.
    """
    return {
        "model": "kansformer_tiny_patch16_224",
        "augment": "photos",
        "epochs": 100,
        "batch_size": 64,
        "lr": 5e-4,
        "warmup_epochs": 5.0,
        "drop_path_rate": 0.1,
    }


def photos_cpu() -> dict[str, Any]:
    """A folder of photographs from scratch, at 64x64 as 64 tokens of overlapping patches.

    The default of `python train.py --data-path flower_photos` on a CPU; not run on these yet. On
    the hand signs, split as for `sign_digits`, `python train.py --data-path sign-split` gave
    96.96 % of 230 test pictures, in 681 s for 1,622 training pictures, on 2 cores of an AMD EPYC
    with torch 2.14; one run, seed 0.
    """
    return {
        "model": "kansformer_micro_patch8_64",
        "stem": "conv",
        "augment": "photos",
        "epochs": 60,
        "batch_size": 64,
        "lr": 1e-3,
        "warmup_epochs": 5.0,
    }


def cifar10_gpu() -> dict[str, Any]:
    """CIFAR-10 from scratch, at 32x32 as 64 tokens of overlapping patches. Not run yet.

    Meant for a GPU: `python train.py --data-path cifar10 --download --recipe cifar10-gpu --amp
    bf16`. Mixing, erasing and the many epochs are what DeiT (Touvron et al., 2021) needs on data
    this small; on a CPU, use the default recipe.
    """
    return {
        "model": "kansformer_tiny_patch4_32",
        "stem": "conv",
        "augment": "small",
        "val_split": 0.1,
        "epochs": 200,
        "batch_size": 256,
        "lr": 1e-3,
        "warmup_epochs": 10.0,
        "drop_path_rate": 0.1,
        "mixup": 0.2,
        "cutmix": 1.0,
        "random_erasing": 0.25,
        "ema": 0.999,
    }


def pretrained() -> dict[str, Any]:
    """Photographs, or CIFAR-10 enlarged, from a pretrained ViT.

    1,399 photographs of cats and dogs: `python split_data.py --data-path dog-cat --output split
    --ratios 0.6 0.2 0.2`, then `python train.py --data-path split --weights vits.safetensors --ffn
    group-kan --img-size 112`, with a ViT-S/14 that its makers had trained on from DINOv2's: 98.57 %
    of 280 test pictures in 920 s on 2 cores of an AMD EPYC with AVX-512; one run, seed 0.
    scikit-learn's logistic regression on features of that size gave at most 91.07 %.

    Not run yet: flower_photos, CIFAR-10 (`--data-path cifar10 --download --recipe pretrained`), and
    any of these on a GPU. The settings of FINE_TUNING or PART_TUNING apply on top.
    """
    return {"augment": "photos", "epochs": 12}


RECIPES = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        digits,
        fashion_mnist,
        mnist,
        small_pictures,
        sign_digits,
        photos,
        photos_cpu,
        cifar10_gpu,
        pretrained,
    )
}
