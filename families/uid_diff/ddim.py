"""One denoising step's arithmetic, in float32: classifier-free guidance and the deterministic DDIM update (eta = 0)."""

from torch import Tensor


def guide(unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor) -> Tensor:
    """Classifier-free guidance: e_u + s (e_c - e_u)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def ddim_update(x_t: Tensor, output: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor, prediction_type: str) -> Tensor:
    """x_t and the network's output -> x_{t-1}.

    All float32; alpha_bar and alpha_bar_prev are the cumulative products at this timestep and at the next one.
    ``prediction_type`` is "epsilon", "v_prediction" or "sample" (x_0 itself); anything else raises ``ValueError``.
    """
    signal, noise = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        eps = output
        x_0 = (x_t - noise * eps) / signal
    elif prediction_type == "v_prediction":
        eps = signal * output + noise * x_t
        x_0 = signal * x_t - noise * output
    elif prediction_type == "sample":
        x_0 = output
        eps = (x_t - signal * x_0) / noise
    else:
        raise ValueError(f"prediction_type is {prediction_type!r}; expected 'epsilon', 'v_prediction' or 'sample'")
    return alpha_bar_prev.sqrt() * x_0 + (1.0 - alpha_bar_prev).sqrt() * eps
