#!/usr/bin/env python3
"""Makes golden folders for `fewstep model verify` of diffusers' schedulers: step traces on recorded network outputs.

    python tools/golden/schedulers.py OUT [--seed S] [--every]      (needs torch, diffusers, safetensors)

A folder has scheduler_config.json as save_pretrained writes it, case.json (arguments of set_timesteps and step) and
io.safetensors: input.initial_sample (already times init_noise_sigma), input.model_outputs and
input.step_noises_in_call_order by call, expected.{timesteps, sigmas, alphas_cumprod, scaled_model_inputs,
samples_after_each_step, add_noise, velocity}. tests/golden/schedulers is OUT of the defaults; --every makes the whole product of
classes, spacings, predictions and step counts (several hundred folders) instead.

Steps are computed in float64, also where diffusers casts to float32: with the first sigma of 4096 or 20291 of zero terminal SNR and
the cosine schedule, float32 would leave few digits at the end. The tables stay float32.

Left out on purpose: the noise that DDPM of fixed_large variance adds to its last result if its last timestep is not 0, and DDIM with
linspace, or with trailing where the steps do not divide the timesteps. There diffusers' step
ends at t - T // n, and the network is told another timestep next; ours ends where the next step starts.
"""
import argparse
import importlib
import itertools
import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
COSINE = dict(beta_schedule="squaredcos_cap_v2")
SHAPE = (1, 2, 3, 2)

# name -> (class, config, set_timesteps arguments, step arguments)
SELECTED = {
    "ddim_v_zero_snr_trailing": ("DDIM", dict(SD, clip_sample=False, prediction_type="v_prediction", timestep_spacing="trailing",
                                              rescale_betas_zero_snr=True), dict(num_inference_steps=5), {}),
    "ddim_eta": ("DDIM", dict(SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1), dict(num_inference_steps=4), dict(eta=0.7)),
    "ddim_cosine_clipped": ("DDIM", dict(COSINE, prediction_type="sample"), dict(num_inference_steps=4), {}),
    "ddpm_large_v": ("DDPM", dict(COSINE, variance_type="fixed_large", prediction_type="v_prediction", timestep_spacing="linspace"),
                     dict(num_inference_steps=4), {}),
    "ddpm_sample": ("DDPM", dict(SD, prediction_type="sample", timestep_spacing="trailing"), dict(num_inference_steps=7), {}),
    "euler_linspace_v": ("EulerDiscrete", dict(SD, prediction_type="v_prediction"), dict(num_inference_steps=6), {}),
    "euler_zero_snr_trailing_v": ("EulerDiscrete", dict(SD, prediction_type="v_prediction", timestep_spacing="trailing",
                                                        rescale_betas_zero_snr=True), dict(num_inference_steps=5), {}),
    "euler_karras": ("EulerDiscrete", dict(SD, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1),
                     dict(num_inference_steps=7), {}),
    "euler_exponential": ("EulerDiscrete", dict(SD, use_exponential_sigmas=True, sigma_min=0.05, final_sigmas_type="sigma_min"),
                          dict(num_inference_steps=5), {}),
    "euler_timesteps": ("EulerDiscrete", SD, dict(timesteps=[999, 749, 499, 249]), {}),
    "euler_ancestral": ("EulerAncestralDiscrete", dict(SD, timestep_spacing="leading", steps_offset=1), dict(num_inference_steps=5), {}),
    "euler_ancestral_v": ("EulerAncestralDiscrete", dict(SD, timestep_spacing="trailing", prediction_type="v_prediction",
                                                         rescale_betas_zero_snr=True), dict(num_inference_steps=4), {}),
    "heun": ("HeunDiscrete", SD, dict(num_inference_steps=4), {}),
    "heun_karras_clipped": ("HeunDiscrete", dict(COSINE, use_karras_sigmas=True, clip_sample=True, prediction_type="sample",
                                                 timestep_spacing="trailing"), dict(num_inference_steps=5), {}),
    "dpmpp_2m": ("DPMSolverMultistep", SD, dict(num_inference_steps=6), {}),
    "dpmpp_2m_karras_v": ("DPMSolverMultistep", dict(SD, use_karras_sigmas=True, prediction_type="v_prediction"), dict(num_inference_steps=8), {}),
    "dpmpp_2m_long_sigma_min": ("DPMSolverMultistep", dict(SD, final_sigmas_type="sigma_min", timestep_spacing="leading", steps_offset=1),
                                dict(num_inference_steps=16), {}),
    "dpmpp_2m_exponential": ("DPMSolverMultistep", dict(COSINE, use_exponential_sigmas=True, prediction_type="sample"),
                             dict(num_inference_steps=5), {}),
    "lcm_timesteps": ("LCM", dict(SD, prediction_type="v_prediction"), dict(timesteps=[999, 749, 499, 249]), {}),
    "lcm_clipped": ("LCM", dict(clip_sample=True, original_inference_steps=40), dict(num_inference_steps=3), {}),
    "flow_stochastic": ("FlowMatchEulerDiscrete", dict(shift=2.5, stochastic_sampling=True), dict(num_inference_steps=4), {}),
    "flow_karras": ("FlowMatchEulerDiscrete", dict(shift=3.0, use_karras_sigmas=True), dict(num_inference_steps=5), {}),
    "flow_two_steps": ("FlowMatchEulerDiscrete", dict(use_dynamic_shifting=True, base_shift=float(np.log(2.5)), max_shift=float(np.log(2.5)),
                                                      shift_terminal=0.7155), dict(num_inference_steps=2, image_seq_len=6889), {}),
}


def every():
    for spacing, prediction, steps, schedule in itertools.product(("leading", "trailing", "linspace"), ("epsilon", "v_prediction", "sample"),
                                                                  (1, 2, 5, 10, 20, 33), (SD, COSINE, {}, "zero")):
        zero = dict(SD, rescale_betas_zero_snr=True)
        betas = zero if schedule == "zero" else schedule
        base = dict(betas, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0)
        label = f"{spacing}_{prediction}_{steps}_{schedule if isinstance(schedule, str) else schedule.get('beta_schedule', 'linear')}"
        noise_only = schedule == "zero" and prediction == "epsilon" and spacing != "leading"
        if not noise_only:
            if not (spacing == "linspace" or (spacing == "trailing" and 1000 % steps)):
                for alpha, clip, eta in ((True, True, 0.0), (False, False, 0.5)):
                    yield f"ddim_{label}_{int(clip)}", ("DDIM", dict(base, set_alpha_to_one=alpha, clip_sample=clip), dict(num_inference_steps=steps), dict(eta=eta))
            if not (spacing == "linspace" and steps == 1):
                for variance in ("fixed_small", "fixed_large"):
                    if variance == "fixed_large" and spacing != "linspace":
                        continue
                    yield f"ddpm_{label}_{variance}", ("DDPM", dict(base, variance_type=variance, clip_sample=steps % 2 == 0), dict(num_inference_steps=steps), {})
        if spacing == "linspace" and steps == 1:
            continue
        for curve in ({}, dict(use_karras_sigmas=True), dict(use_exponential_sigmas=True)):
            name = next(iter(curve), "plain")
            for end in ("zero", "sigma_min"):
                if not (end == "sigma_min" and spacing == "linspace"):  # its last step has no length, and diffusers' DPM-Solver no number
                    yield f"euler_{label}_{name}_{end}", ("EulerDiscrete", dict(base, **curve, final_sigmas_type=end), dict(num_inference_steps=steps), {})
                    yield f"dpm_{label}_{name}_{end}", ("DPMSolverMultistep", dict(base, **curve, final_sigmas_type=end), dict(num_inference_steps=steps), {})
            # Heun's second slope divides by the next sigma what was rounded at the first one: 20291 / 0.006 in the cosine schedule.
            if schedule != "zero" and not (schedule is COSINE and not curve):
                yield f"heun_{label}_{name}", ("HeunDiscrete", dict(base, **curve, clip_sample=steps == 5), dict(num_inference_steps=steps), {})
        if prediction != "sample":
            yield f"euler_a_{label}", ("EulerAncestralDiscrete", base, dict(num_inference_steps=steps), {})
        if spacing == "leading" and not (schedule == "zero" and prediction == "epsilon"):
            yield f"lcm_{label}", ("LCM", dict(base, clip_sample=steps == 5), dict(num_inference_steps=steps, original_inference_steps=50), {})
    for shift, steps, curve in itertools.product((1.0, 3.0, 0.5), (1, 2, 5, 28), ({}, dict(use_karras_sigmas=True), dict(use_exponential_sigmas=True))):
        for stochastic in (False, True):
            yield (f"flow_{shift}_{steps}_{next(iter(curve), 'plain')}_{stochastic}",
                   ("FlowMatchEulerDiscrete", dict(shift=shift, stochastic_sampling=stochastic, **curve), dict(num_inference_steps=steps), {}))
    for kind, steps, terminal in itertools.product(("exponential", "linear"), (2, 7), (None, 0.1)):
        yield (f"flow_dynamic_{kind}_{steps}_{terminal}",
               ("FlowMatchEulerDiscrete", dict(use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=terminal),
                dict(num_inference_steps=steps, image_seq_len=1500), {}))


def set_timesteps(scheduler, config, args):
    if "image_seq_len" not in args:
        return scheduler.set_timesteps(**args)
    # As diffusers' pipelines do: sigmas 1 .. 1 / n, mu by the number of tokens.
    c, n = scheduler.config, args["num_inference_steps"]
    slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), mu=c.base_shift + slope * (args["image_seq_len"] - c.base_image_seq_len))


class Wide:
    """torch, but for float32, which is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def trace(scheduler, module, generator, config, args, step_args):
    draw = lambda: torch.randn(SHAPE, generator=generator).double()
    noises = []

    def recorded(*_, **__):
        noises.append(draw())
        return noises[-1]

    original, module.randn_tensor = getattr(module, "randn_tensor", None), recorded
    try:
        set_timesteps(scheduler, config, args)
        x = (draw() * float(getattr(scheduler, "init_noise_sigma", 1.0))).float().double()
        io = {"input.initial_sample": x, "expected.timesteps": scheduler.timesteps.clone()}
        if getattr(scheduler, "sigmas", None) is not None:
            io["expected.sigmas"] = scheduler.sigmas.clone()
        if hasattr(scheduler, "alphas_cumprod"):
            io["expected.alphas_cumprod"] = scheduler.alphas_cumprod.clone()
        outputs, inputs, samples, module.torch = [], [], [], Wide()
        for t in scheduler.timesteps:
            inputs.append(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x)
            outputs.append(draw())
            x = scheduler.step(outputs[-1], t, x, **step_args).prev_sample
            samples.append(x)
    finally:
        module.randn_tensor, module.torch = original, torch
    io["input.model_outputs"] = torch.stack(outputs)
    io["expected.scaled_model_inputs"], io["expected.samples_after_each_step"] = torch.stack(inputs), torch.stack(samples)
    if noises:
        io["input.step_noises_in_call_order"] = torch.stack(noises)
    io.update(forward_process(scheduler, draw))
    return {k: v.float() if k.startswith("input.") or k.endswith(("samples_after_each_step", "scaled_model_inputs", "add_noise", "velocity")) else v
            for k, v in io.items()}


def forward_process(scheduler, draw):
    io = {"input.add_noise_x0": draw().repeat(2, 1, 1, 1), "input.add_noise_eps": torch.cat([draw(), draw()])}
    x0, eps = io.values()
    of_plan = not hasattr(scheduler, "get_velocity") or hasattr(scheduler, "sigmas")
    t = scheduler.timesteps[[0, -1]] if of_plan else torch.tensor([17, 801])
    io["input.add_noise_timesteps"] = t
    if hasattr(scheduler, "scale_noise"):
        io["expected.add_noise"] = scheduler.scale_noise(x0, t, eps)
    else:
        io["expected.add_noise"] = scheduler.add_noise(x0, eps, t)
        if hasattr(scheduler, "get_velocity"):
            io["expected.velocity"] = scheduler.get_velocity(x0, eps, t)
    return io


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", action="store_true")
    args = parser.parse_args()
    import diffusers
    diffusers.utils.logging.set_verbosity_error()
    cases = dict(every()) if args.every else SELECTED
    made = 0
    for number, (name, (kind, config, timesteps, step)) in enumerate(cases.items()):
        scheduler = getattr(diffusers, kind + "Scheduler")(**config)
        folder = args.out / name
        scheduler.save_pretrained(folder)
        module = importlib.import_module(type(scheduler).__module__)
        try:
            io = trace(scheduler, module, torch.Generator().manual_seed(args.seed * 10000 + number), config, timesteps, step)
            problem = "" if all(torch.isfinite(v).all() for v in io.values()) else "values that are not finite"
        except (IndexError, AssertionError) as error:  # two equal timesteps, which its classes look up by value
            problem = str(error)
        if problem:
            print(f"{name}: left out, diffusers gives {problem}")
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
            continue
        save_file({k: v.detach().clone().contiguous() for k, v in io.items()}, folder / "io.safetensors")
        (folder / "case.json").write_text(json.dumps({"class_": kind + "Scheduler", "args": timesteps, "step_kwargs": step}, indent=1) + "\n")
        made += 1
    print(f"{made} folders in {args.out}")


if __name__ == "__main__":
    main()
