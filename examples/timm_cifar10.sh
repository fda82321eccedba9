#!/usr/bin/env bash
# timm's unmodified train.py on adaptive 30 % of an image folder with train/CLASS and test/CLASS:
#   git clone --depth 1 https://github.com/huggingface/pytorch-image-models
#   bash examples/timm_cifar10.sh pytorch-image-models/train.py path/to/cifar10 [more flags]
# Leave the --subset flags out to train on all the data; --subset-strategy fresh-random is the baseline.
set -euo pipefail
train=$1 data=$2
shift 2
python -m adaptive_subset.integrations.timm_patch "$train" --data-dir "$data" \
    --train-split train --val-split test --num-classes 10 --model resnet10t --img-size 32 \
    --opt sgd --lr 0.05 --epochs 60 --warmup-epochs 3 --batch-size 128 --scale 0.6 1 \
    --val-interval 3 --subset-fraction 0.3 --subset-strategy order-dp \
    "$@"
