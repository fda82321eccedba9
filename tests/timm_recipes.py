"""Recipes of timm's documentation and of papers, as train.py's flags, for small models.

Data, batch size, epochs, learning rate and devices are those of the test, and the model is a small
one of the recipe's kind. RandAugment is that of magnitude 7 where a recipe has 9 and ``inc1``:
there timm may posterize to 0 bits, which newer versions of Pillow refuse, with or without a subset.
"""

from __future__ import annotations

SMALL_VIT = "--model-kwargs img_size=32 depth=2"
OF_DEIT = """--opt adamw --weight-decay 0.05 --sched cosine --warmup-lr 1e-6 --min-lr 1e-5
    --aa rand-m7-mstd0.5-inc1 --reprob 0.25 --remode pixel --mixup 0.8 --cutmix 1.0 --smoothing 0.1
    --train-interpolation bicubic --drop-path 0.1"""
OF_EFFICIENTNET = """--sched step --decay-epochs 2.4 --decay-rate .97 --opt rmsproptf --opt-eps .001
    --warmup-lr 1e-6 --weight-decay 1e-5 --drop-path 0.2 --model-ema --model-ema-decay 0.9999
    --aa rand-m9-mstd0.5 --remode pixel --reprob 0.2 --amp --amp-dtype bfloat16"""
OF_RSB = """--model resnet10t --opt lamb --sched cosine --warmup-lr 1e-6 --drop-path 0.05 --bce-loss
    --cutmix 1.0 --amp --amp-dtype bfloat16"""
RECIPES = {
    # Wightman, Touvron, Jégou 2021, "ResNet strikes back", table 2.
    "RSB A1": OF_RSB
    + """ --aug-repeats 3 --mixup 0.2 --smoothing 0.1 --weight-decay 0.01
        --aa rand-m7-mstd0.5-inc1""",
    "RSB A2": OF_RSB
    + """ --aug-repeats 3 --mixup 0.1 --smoothing 0 --weight-decay 0.02
        --aa rand-m7-mstd0.5-inc1""",
    "RSB A3": OF_RSB + " --mixup 0.1 --smoothing 0 --weight-decay 0.02 --aa rand-m6-mstd0.5-inc1",
    # Touvron et al. 2021, "Training data-efficient image transformers", table 9.
    "DeiT": f"{OF_DEIT} --model deit_tiny_patch16_224 {SMALL_VIT} --aug-repeats 3 --model-ema",
    "DeiT distilled": f"""{OF_DEIT} --model deit_tiny_distilled_patch16_224 {SMALL_VIT} --task
        --aug-repeats 3 --kd-model-name resnet10t --kd-distill-type token
        --kd-token-distill-type hard""",
    # Liu et al. 2022, "A ConvNet for the 2020s", table 5.
    "ConvNeXt": f"{OF_DEIT} --model convnext_atto --model-ema --model-ema-decay 0.9999",
    # Liu et al. 2021, "Swin Transformer", section A2.1.
    "Swin": f"""{OF_DEIT} --model swin_tiny_patch4_window7_224 --clip-grad 5.0 --model-kwargs
        img_size=32 window_size=4 embed_dim=24 depths=[1,1] num_heads=[2,2]""",
    # The documentation's examples.
    "EfficientNet-B2": f"{OF_EFFICIENTNET} --model efficientnet_lite0 --drop 0.3",
    "MobileNetV3": f"""{OF_EFFICIENTNET} --model mobilenetv3_small_050 --drop 0.2 --decay-rate .973
        --lr-noise .42 .9""",
    "SE-ResNet34": "--model resnet10t --sched cosine --reprob 0.5 --remode pixel --amp "
    "--amp-dtype bfloat16",
    "ResNet50 with JSD": """--model resnet10t --sched cosine --amp --amp-dtype bfloat16 --remode
        pixel --reprob 0.6 --aug-splits 3 --aa rand-m7-mstd0.5-inc1 --resplit --split-bn
        --jsd-loss --dist-bn reduce""",
    # Qin et al. 2024, "MobileNetV4", table 12, as far as train.py has flags for it.
    "MobileNetV4": """--model mobilenetv4_conv_small --opt adamw --opt-betas 0.6 0.999 --sched
        cosine --weight-decay 0.1 --drop 0.3 --aa rand-m15-mstd0.5 --model-ema --amp
        --amp-dtype bfloat16""",
    # No recipes, but parts of many.
    "distillation": "--model resnet10t --task --kd-model-name resnet10t --kd-distill-type logit",
    "multi-epochs loader": "--model resnet10t --use-multi-epochs-loader",
    "repeated augmentation": "--model resnet10t --aug-repeats 3",
}
# timm's changes.mdx, of the release that brought it.
NAFLEX = "--model vit_tiny_patch16_224 --model-kwargs use_naflex=True --naflex-loader"
