"""Checkpoints in LLaVA's original layout, made from those that transformers writes."""

import json
import shutil

TOWER = "vision_tower.vision_model."
PLACES = {"linear_1": "0", "linear_2": "2"}


def original_name(name):
    """A tensor's name as the original code has it."""
    name = name.removeprefix("model.")
    if name.startswith("multi_modal_projector."):
        _, layer, kind = name.split(".")
        return f"model.mm_projector.{PLACES[layer]}.{kind}"
    if name.startswith("vision_tower."):
        rest = name.removeprefix("vision_tower.").removeprefix("vision_model.")
        return f"model.vision_tower.vision_tower.vision_model.{rest}"
    if name == "image_newline":
        return "model.image_newline"
    name = name.removeprefix("language_model.").removeprefix("model.")
    return name if name.startswith("lm_head") else f"model.{name}"


def write_original(hf, folder, *, tower="inside", suffix=".safetensors", **more):
    """The checkpoint in `hf`, once more.

    Args:
        hf: a folder in transformers' layout.
        folder: where to write.
        tower: "inside", or a folder to which the encoder is written as a CLIP checkpoint.
        suffix: of the weight files; ".bin" for PyTorch's own.
        more: keys of config.json.
    """
    from safetensors.torch import load_file

    folder.mkdir(parents=True)
    for path in hf.iterdir():
        if path.name.startswith(("token", "special", "generation", "chat", "vocab", "merges")):
            shutil.copy(path, folder)
    tensors = {original_name(n): t for n, t in load_file(hf / "model.safetensors").items()}
    config = json.loads((hf / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    if tower != "inside":
        inside = [name for name in tensors if ".vision_tower." in name]
        clip = {"vision_model." + n.split(".vision_model.")[1]: tensors.pop(n) for n in inside}
        norm = clip["vision_model.post_layernorm.weight"].clone()  # of the half that is not read
        clip |= {"text_model.final_layer_norm.weight": norm}
        tower.mkdir()
        _save(clip, tower, suffix)
        (tower / "config.json").write_text(json.dumps({"vision_config": vision}))
    _save(tensors, folder, suffix)
    kind = {"llama": "Llama", "mistral": "Mistral"}[text["model_type"]]
    made = text | {
        "architectures": [f"Llava{kind}ForCausalLM"],
        "model_type": f"llava_{kind.lower()}",
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
        "torch_dtype": "float32",
    }
    if pinpoints := config.get("image_grid_pinpoints"):
        made |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
        made["image_grid_pinpoints"] = [[w, h] for h, w in pinpoints]
    (folder / "config.json").write_text(json.dumps(made | more))
    return folder


def _save(tensors, folder, suffix):
    if suffix == ".bin":
        import torch

        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(tensors, folder / "model.safetensors")
