"""Sidecars' arrays in torch modules, for the training tests."""


def load_heads(sidecar, heads):
    """A sidecar's arrays into torch modules."""
    import torch

    with torch.no_grad():
        for cut, head in zip(sidecar.cuts, heads, strict=True):
            for part in ("proj", "theta_r", "theta_s"):
                for kind, value in getattr(head, part).named_parameters():
                    array = sidecar.tensors[f"blk.{cut - 1}.atp_{part}.{kind}"]
                    value.copy_(torch.from_numpy(array))


def spec_of(sidecar):
    from atp_cpp.train.spec import AtpSpec

    names = ("cuts", "score_norm", "divisor", "score", "rule", "strides", "lambda_sample")
    more = ("n_bins", "n_hidden", "activation")
    return AtpSpec(**{name: getattr(sidecar, name) for name in (*names, *more)})
