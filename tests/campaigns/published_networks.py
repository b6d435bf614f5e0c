"""Networks that were written elsewhere: for each a file of Python as a user would give it, and the side of its images."""


def _torchvision(call: str, size: int = 32) -> tuple[str, int]:
    return f"from torchvision import models\n\ndef build(classes, image_size):\n    return models.{call}\n", size


def _timm(name: str, more: str = "", size: int = 32) -> tuple[str, int]:
    call = f"timm.create_model({name!r}, num_classes=classes{more})"
    return f"import timm\n\ndef build(classes, image_size):\n    return {call}\n", size


_SIZED = ", img_size=image_size"

NETWORKS: dict[str, tuple[str, int]] = {
    **{
        f"torchvision {name}": _torchvision(f"{name}(num_classes=classes)")
        for name in (
            "resnet18", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny",
            "swin_t", "swin_v2_t", "densenet121", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5",
            "regnet_y_400mf", "googlenet",
        )
    },
    "torchvision googlenet, no auxiliary heads": _torchvision(
        "googlenet(num_classes=classes, aux_logits=False, init_weights=False)"
    ),
    "torchvision inception_v3, no auxiliary heads": _torchvision(
        "inception_v3(num_classes=classes, aux_logits=False, init_weights=False)", 80
    ),
    "torchvision alexnet": _torchvision("alexnet(num_classes=classes)", 64),
    "torchvision vgg11_bn": _torchvision("vgg11_bn(num_classes=classes)"),
    "torchvision VisionTransformer, 4 layers": _torchvision(
        "VisionTransformer(image_size[0], 8, 4, 4, 64, 128, dropout=0.1, num_classes=classes)"
    ),
    "torchvision MaxVit, 2 blocks": _torchvision(
        "MaxVit(image_size, 32, 4, [32, 64], [1, 1], 16, 0.2, num_classes=classes)", 64
    ),
    **{
        f"timm {name}": _timm(name)
        for name in (
            "resnet10t", "convnextv2_atto", "mobilenetv4_conv_small_035", "poolformer_s12", "edgenext_xx_small",
            "ghostnet_050", "mobilevit_xxs", "tinynet_e", "regnetx_002", "lcnet_035", "repvit_m0_9", "starnet_s050",
            "efficientvit_b0", "inception_next_atto", "rexnet_100", "skresnet18", "dla46_c", "test_byobnet",
        )
    },
    **{
        f"timm {name}": _timm(name, _SIZED)
        for name in (
            "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mixer_s32_224", "resmlp_12_224",
            "gmlp_ti16_224", "cait_xxs24_224", "convit_tiny", "levit_128s",
        )
    },
    "timm vit_tiny, drop path": _timm("vit_tiny_patch16_224", f"{_SIZED}, patch_size=8, drop_path_rate=0.2"),
    "timm resnet10t, drop path": _timm("resnet10t", ", drop_path_rate=0.2, drop_rate=0.1"),
    "timm efficientformer_l1": _timm("efficientformer_l1", size=224),
    "timm fastvit_t8": _timm("fastvit_t8", size=64),
}  # fmt: skip
