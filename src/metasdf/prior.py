"""Prior: what is trained, saved, loaded and shipped. `prior.adapt(points)` turns observations of a shape into its SDF."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from metasdf.checkpoint import load_state, save_state
from metasdf.conditioning.base import Conditioner, Decoder, EncodeDecode, Encoder
from metasdf.conditioning.codes import AutoDecoder
from metasdf.conditioning.encoders import SetEncoder
from metasdf.conditioning.hypernetwork import BiasHypernetwork, Hypernetwork
from metasdf.conditioning.latent import LatentLoop
from metasdf.conditioning.metasdf import MetaSDF
from metasdf.conditioning.pointnet import ResnetPointNet
from metasdf.conditioning.refine import refine
from metasdf.errors import CheckpointError, InputError, UsageError
from metasdf.experiments import Experiment, from_dict, to_dict
from metasdf.fields import FieldSpec, Layer, Params, field
from metasdf.geometry.frame import Frame, bounding_box, farthest_point
from metasdf.geometry.pose import Pose
from metasdf.heads import DistanceAndSign, Head, make_head
from metasdf.memory import available_bytes
from metasdf.tasks import Observations, moved

if TYPE_CHECKING:
    from metasdf.geometry.isosurface import Extraction
    from metasdf.geometry.mesh import Mesh

SHIPPED = Path(__file__).parent / "priors"
MNIST_EXTENT = 20 / 28  # MNIST scales each digit so that its longer side is 20 of 28 pixels
MAX_CONTEXT = 50_000  # more observations than this are subsampled: nothing is gained by them in five steps


def build_conditioner(experiment: Experiment, *, n_tasks: int = 0, generator: torch.Generator | None = None) -> Conditioner:
    """The conditioner of an experiment, fresh. n_tasks: codes for so many training shapes, where the method has codes."""
    m, spec, head = experiment.method, experiment.field, make_head(experiment.head, experiment.inner_norm, clamp=experiment.clamp)
    if m.kind == "metasdf":
        return MetaSDF(spec, experiment.inner, head=head, generator=generator)
    decoder: Decoder
    if m.decoder == "bias":
        decoder = BiasHypernetwork(spec, m.bias, code_dim=m.code_dim, generator=generator)
    else:
        decoder = Hypernetwork(spec, m.full, code_dim=m.code_dim, generator=generator)
    if m.kind == "encoder":
        encoder: Encoder
        if m.encoder_kind == "mean":
            encoder = SetEncoder(spec.in_dim, m.encoder, code_dim=m.code_dim, generator=generator)
        else:
            encoder = ResnetPointNet(spec.in_dim, m.pointnet, code_dim=m.code_dim, generator=generator)
        return EncodeDecode(encoder, decoder)
    if m.kind == "codes":
        return AutoDecoder(decoder, m.codes, n_tasks=n_tasks, head=head, generator=generator)
    return LatentLoop(decoder, m.latent, head=head)


class Observed(NamedTuple):
    """What is known of one shape in the field's cube: points x (N, d), signed distances s (N,) or None on the surface, and the way there."""

    pose: Frame | Pose
    x: NDArray[np.floating]
    s: NDArray[np.floating] | None


class Prior(nn.Module):
    """A trained conditioner with what is needed to use it: head, frame convention and card.

    `card` says what it was trained on, how, and how well it does; it travels inside the file.
    """

    def __init__(self, experiment: Experiment, conditioner: Conditioner, *, extent: float = MNIST_EXTENT, card: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.experiment = experiment
        self.conditioner = conditioner
        self.head: Head = make_head(experiment.head, experiment.outer_norm, clamp=experiment.clamp)
        self.extent = extent
        self.card = card or {}

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def dim(self) -> int:
        return self.conditioner.spec.in_dim

    @property
    def needs_values(self) -> bool:
        """Dense priors learn from signed distances, level-set priors from bare surface points."""
        return self.experiment.context == "dense"

    @property
    def bounds_hold(self) -> bool:
        """Whether it observes true distances, which bound each other (`conditioning.refine.around`): those of images jump by a pixel at the border,
        those that normals tell are wrong behind sheets."""
        return self.dim == 3 and self.needs_values

    @property
    def needs_normals(self) -> bool:
        """Of the surface points that it learns from."""
        return self.experiment.context == "oriented"

    def save(self, path: str | Path, *, compact: bool = False) -> None:
        """Write the prior as one safetensors file, whole or not at all.

        compact: what only scales gradients, rates and curvature, with 11 significant bits: half the size, as the shipped priors are.
        """
        tensors = self.conditioner.state_dict()
        if compact:
            tensors = {name: t.half() if name.startswith(("rates.", "curvature.")) else t for name, t in tensors.items()}
        state = {"experiment": to_dict(self.experiment), "extent": self.extent, "card": self.card}
        save_state(Path(path), tensors, state, kind="prior")

    def check_refine(self, steps: int) -> None:
        """Raises UsageError for steps of `refine` where bare points are all that is known, and for fewer than none."""
        if steps < 0:
            raise UsageError("fewer steps than none cannot be made", where=f"refine={steps}", fix="0 leaves the fit as it is")
        if steps and not (self.needs_values or self.needs_normals):
            other = "mnist-dense, which takes distances" if self.dim == 2 else "a prior that takes normals (-oriented) or distances (-dense)"
            raise UsageError(f"bare points are not enough to refine what {self.name} finds", cause="they do not hold the field away from the surface",
                             fix=f"leave refine out; or use {other}")  # fmt: skip

    def refine(self, params: Params, context: Observations, *, steps: int) -> Params:
        """`conditioning.refine` by the loss that the method itself descends at test time, or the training's where it has none. Raises as
        `check_refine`."""
        self.check_refine(steps)
        own = getattr(self.conditioner, "head", None)
        return refine(params, context, self.conditioner.spec, own if isinstance(own, Head) else self.head, steps=steps, bounds=self.bounds_hold)

    def frame_of(self, surface: NDArray[np.floating]) -> Frame:
        """The frame in which a shape with these surface points looks like the training shapes."""
        return bounding_box(surface, extent=self.extent) if self.dim == 2 else farthest_point(surface)

    @overload
    def adapt(
        self, points: ArrayLike | Tensor, values: ArrayLike | Tensor | None = None, *, normals: ArrayLike | Tensor | None = None,
        frame: Frame | None = None, steps: int | None = None, refine: int = 0,
    ) -> SDF: ...  # fmt: skip
    @overload
    def adapt(
        self, points: list[Any], values: list[Any] | None = None, *, normals: list[Any] | None = None,
        frame: Sequence[Frame] | Frame | None = None, steps: int | None = None, refine: int = 0,
    ) -> list[SDF]: ...  # fmt: skip

    def adapt(self, points: Any, values: Any = None, *, normals: Any = None, frame: Any = None, steps: int | None = None, refine: int = 0) -> Any:
        """The SDF of a new shape from what is observed of it, in a few gradient steps.

        points: (N, d) coordinates in any units; a list of such arrays gives a list of SDFs, fitted together.
        values: (N,) or (N, 1) signed distances in the same units, negative inside; needed by dense priors, refused by others.
        normals: (N, d) outward normals of any length; needed by oriented priors, refused by others.
        frame: how the units map to the field; by default found from the surface (points, or where the values cross zero).
        steps: gradient steps; more than the prior was trained with repeat the rates of its last step.
        refine: steps of Adam on the whole network after these, which bring it closer to the observations (`conditioning.refine`).
        Of more than MAX_CONTEXT observations that many are drawn, always the same ones.
        Raises InputError for points that cannot be used (shape, NaN, too few, no surface), UsageError for `refine` from bare points.
        """
        if isinstance(points, list) and points and not np.isscalar(points[0]) and np.ndim(_numpy(points[0])) == 2:
            values, normals = (each if each is not None else [None] * len(points) for each in (values, normals))
            frames = frame if isinstance(frame, Sequence) and not isinstance(frame, Frame) else [frame] * len(points)
            if not len(points) == len(values) == len(normals) == len(frames):
                raise InputError(f"{len(points)} shapes, {len(values)} sets of values, {len(normals)} of normals and {len(frames)} frames",
                                 fix="give one of each per shape")  # fmt: skip
            return self.fit([self._observe(*each) for each in zip(points, values, normals, frames, strict=True)], steps=steps, refine=refine)
        return self.fit([self._observe(points, values, normals, frame)], steps=steps, refine=refine)[0]

    def _observe(self, points: Any, values: Any, normals: Any, frame: Frame | None) -> Observed:
        x = _check_points(_numpy(points), self.dim)
        if self.needs_normals and normals is None:
            raise InputError(f"the prior {self.name} learns from points with normals, none were given",
                             fix=f"use another prior{self._named('levelset' if values is None else 'dense')}, or pass normals")  # fmt: skip
        if normals is not None and not self.needs_normals:
            other = "use another prior (their names end with -oriented), or " if self.dim == 3 else ""
            raise InputError(f"the prior {self.name} does not learn from normals, which were given", fix=f"{other}leave them out")
        if self.needs_values and values is None:
            raise InputError(f"the prior {self.name} learns from signed distances, only points were given", cause="bare surface points",
                             fix=f"use a level-set prior{self._named('levelset')}, or pass values")  # fmt: skip
        if not self.needs_values and values is not None:
            raise InputError(f"the prior {self.name} learns from surface points, signed distances were given",
                             fix=f"use a dense prior{self._named('dense')}, or pass the points on the surface alone")  # fmt: skip
        if values is None:
            frame = frame or self.frame_of(x)
            s = None
        else:
            s = _check_values(_numpy(values), len(x))[:, 0]
            if frame is None:
                from metasdf.geometry.samples import crossings, zero_crossings

                frame = self.frame_of((zero_crossings if self.dim == 2 else crossings)(x, s))
            s = s * frame.scale
        if len(frame.centre) != self.dim:
            raise InputError(f"a {len(frame.centre)}D frame for a {self.dim}D prior")
        x, rng = frame.to_field(x), np.random.default_rng(0)
        if normals is not None:
            x, s = moved(rng, x, _check_normals(_numpy(normals), x.shape))
            s = s[:, 0]
        if len(x) > MAX_CONTEXT:
            chosen = rng.permutation(len(x))[:MAX_CONTEXT]
            x, s = x[chosen], None if s is None else s[chosen]
        return Observed(frame, x, s)

    def _named(self, rule: str) -> str:
        return f" (for digits: mnist-{rule})" if self.dim == 2 else f" (their names end with -{rule})"

    def fit(self, observed: Sequence[Observed], *, steps: int | None = None, refine: int = 0) -> list[SDF]:
        """`adapt` for what is in the field's cube already. Raises as `check_refine`."""
        self.check_refine(refine)
        first = next(self.conditioner.parameters())
        sdfs: list[SDF | None] = [None] * len(observed)
        # Shapes with equally many points are fitted as one batch; every shape keeps its own gradient, so grouping changes nothing.
        sizes: dict[int, list[int]] = {}
        for index, each in enumerate(observed):
            sizes.setdefault(len(each.x), []).append(index)
        for n, group in sizes.items():
            x = np.stack([observed[i].x for i in group])
            y = np.zeros((len(group), n, 1))
            for row, i in enumerate(group):
                y[row, :, 0] = 0.0 if (s := observed[i].s) is None else s
            context = Observations(*(torch.from_numpy(each.astype(np.float32)).to(first) for each in (x, y)))
            with torch.no_grad():
                path = self.conditioner.trajectory(context, steps=steps)
            refined = [self.refine(path[-1], context, steps=refine)] if refine else []
            for row, i in enumerate(group):
                own = [tuple(Layer(_row(w, row, 2), _row(b, row, 1)) for w, b in params) for params in (*path, *refined)]
                last = own.pop() if refined else None
                sdfs[i] = SDF(own, self.conditioner.spec, self.head, observed[i].pose, prior=self.name, refined=last, known=self.known(observed[i]))
        return [sdf for sdf in sdfs if sdf is not None]

    def refine_sdf(self, sdf: SDF, observed: Observed, *, steps: int) -> SDF:
        """What the learned steps of `fit` found, refined to what is observed in the same pose: more than these saw, perhaps. Raises as
        `check_refine`."""
        first = sdf.params[0].weight
        y = np.zeros(len(observed.x)) if observed.s is None else observed.s
        context = Observations(*(torch.from_numpy(each.astype(np.float32)).to(first) for each in (observed.x, y[:, None])))
        params = self.refine(sdf.path[-1], context, steps=steps)
        return SDF(sdf.path, sdf.spec, sdf.head, sdf.pose, prior=sdf.prior, refined=params, known=self.known(observed))

    def known(self, observed: Observed) -> NDArray[np.float32] | None:
        """`SDF.known`: the observations that can refute something, MAX_CONTEXT at most, those that reach farthest; none if there is none."""
        if not self.bounds_hold or observed.s is None:
            return None
        from metasdf.geometry.refuted import MARGIN

        reach = np.abs(observed.s)
        far = np.sort(np.argsort(-reach, kind="stable")[: min(int((reach > MARGIN).sum()), MAX_CONTEXT)])
        return np.column_stack((observed.x[far], observed.s[far])).astype(np.float32) if len(far) else None


class SDF:
    """The signed distance function of one shape, in the user's own units: negative inside.

    `sdf(x)` and `sdf.value_and_grad(x)` take (..., d) arrays or tensors and answer in kind.
    `sdf.after(j)` is the field after j inner steps, `sdf.frame` the map to field units. pose: that map where the shape was turned as well.
    refined: what these steps were refined to, if they were. known: signed distances x, y, z, s (K, 4) in field units that were observed of a 3D
    shape; they say where its meshes can have no piece (`geometry.refuted`).
    """

    def __init__(
        self, path: list[Params], spec: FieldSpec, head: Head, pose: Frame | Pose, *, prior: str = "", refined: Params | None = None,
        known: NDArray[np.floating] | None = None,
    ) -> None:  # fmt: skip
        self.path, self.spec, self.head, self.pose, self.prior, self.refined, self.known = path, spec, head, pose, prior, refined, known

    @property
    def frame(self) -> Frame:
        return self.pose.frame if isinstance(self.pose, Pose) else self.pose

    @property
    def params(self) -> Params:
        return self.refined or self.path[-1]

    def after(self, step: int) -> SDF:
        """The field after `step` steps; 0 is the learned initialisation, which knows nothing of the shape."""
        return SDF(self.path[: step + 1], self.spec, self.head, self.pose, prior=self.prior, known=self.known if step else None)

    def in_field(self, x: Tensor) -> Tensor:
        """Distance (N, 1) at field coordinates (N, d), differentiable."""
        return self.head.to_sdf(field(self.params, x, self.spec))

    @torch.no_grad()
    def at_field(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """Distances (N,) in field units at field coordinates (N, d)."""
        parts = torch.from_numpy(np.ascontiguousarray(x)).to(self.params[0].weight).split(65_536)
        return np.concatenate([self.in_field(part)[:, 0].double().cpu().numpy() for part in parts])

    def extract(self, *, resolution: int = 128, method: Literal["sparse", "dense"] = "sparse") -> Extraction:
        """The surface of a 3D shape as a mesh in the user's units, and how it was found: see `geometry.isosurface.extract`. As many points go
        through the network at once as a quarter of the free memory holds, on a CPU no more than its cache likes. Pieces that the observed
        distances refute are dropped, and the notes say so.

        Raises UsageError for 2D, EmptySurfaceError where there is none, InputError for a field that is not finite.
        """
        from metasdf.geometry.isosurface import extract
        from metasdf.geometry.mesh import is_watertight
        from metasdf.geometry.refuted import drop_refuted

        if self.spec.in_dim != 3:
            raise UsageError("only 3D shapes have meshes", cause=f"this is a {self.spec.in_dim}D field", fix="metasdf reconstruct draws contours")
        weight = self.params[0].weight
        point = 3 * weight.element_size() * (self.spec.encoded_dim + sum(out for out, _ in self.spec.shapes))  # bytes: all layers, before and after
        most, free = 8192 if weight.device.type == "cpu" else 65_536, available_bytes(weight.device)
        chunk = most if free is None else min(most, max(1, free // 4 // point))
        found = extract(self.at_field, resolution=resolution, method=method, chunk=chunk)
        mesh, dropped = (found.mesh, 0) if self.known is None else drop_refuted(found.mesh, self.known[:, :3], self.known[:, 3])
        if dropped:
            closed = is_watertight(mesh)
            note = f"pieces of the surface where the observed distances say that none can be: {dropped:,}, dropped"
            found = found._replace(watertight=closed, clipped=found.clipped and not closed, notes=(*found.notes, note))
        return found._replace(mesh=mesh._replace(vertices=self.pose.from_field(mesh.vertices)))

    def mesh(self, resolution: int = 128) -> Mesh:
        """The surface in the user's units: vertices (V, 3) and faces (F, 3), outwards. Raises as `extract`."""
        return self.extract(resolution=resolution).mesh

    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    @overload
    def __call__(self, x: ArrayLike) -> NDArray[np.float64]: ...

    def __call__(self, x: Any) -> Any:
        """Signed distances (...) at points (..., d)."""
        return self._answer(x, gradient=False)[0]

    def value_and_grad(self, x: Any) -> tuple[Any, Any]:
        """Signed distances (...) and their gradients (..., d): the unit normal where the field is a true distance."""
        return self._answer(x, gradient=True)

    def _answer(self, x: Any, *, gradient: bool) -> tuple[Any, Any]:
        points = _numpy(x)
        dim = self.spec.in_dim
        if points.ndim < 1 or points.shape[-1] != dim:
            raise InputError(f"points must have shape (..., {dim}), got {points.shape}", cause="a transposed array, or another dimension")
        like = self.params[0].weight
        flat = torch.from_numpy(self.pose.to_field(points.reshape(-1, dim))).to(like)
        values, grads = [], []
        for part in flat.split(65_536):
            with torch.set_grad_enabled(gradient):
                part = part.requires_grad_(gradient)
                value = self.in_field(part)
                if gradient:
                    grads.append(torch.autograd.grad(value.sum(), part)[0])
            values.append(value.detach())
        s = (torch.cat(values) if values else flat.new_zeros(0, 1)).double().cpu().numpy().reshape(points.shape[:-1]) / self.frame.scale
        # The chain rule through the frame cancels: d(s / scale)/dx = ds/dfield * scale / scale. A turn stays.
        g = torch.cat(grads).double().cpu().numpy() if grads else np.zeros((flat.shape[0], dim))
        if isinstance(self.pose, Pose):
            g = g @ self.pose.rotation
        g = g.reshape(points.shape)
        if isinstance(x, Tensor):
            like = x if x.is_floating_point() else like.to(x.device)  # whole coordinates do not have whole distances
            return torch.from_numpy(np.asarray(s)).to(like), torch.from_numpy(g).to(like)
        return s, g

    def save(self, path: str | Path) -> None:
        """Write the SDF as one safetensors file; `metasdf.load_sdf` reads it."""
        tensors = {f"{index}.{key}": t for index, layer in enumerate(self.params) for key, t in layer._asdict().items()}
        if self.known is not None:
            tensors["known"] = torch.from_numpy(self.known)
        state = {"field": to_dict(self.spec), "norm": getattr(self.head, "norm", "squared"),
                 "head": "distance_sign" if isinstance(self.head, DistanceAndSign) else "distance", "centre": list(self.frame.centre),
                 "scale": self.frame.scale, "prior": self.prior,
                 "rotation": self.pose.rotation.tolist() if isinstance(self.pose, Pose) else None}  # fmt: skip
        save_state(Path(path), tensors, state, kind="sdf")


def load_sdf(path: str | Path) -> SDF:
    """The SDF that `SDF.save` wrote."""
    tensors, state = load_state(Path(path), kind="sdf")
    spec = from_dict(FieldSpec, state["field"])
    params = tuple(Layer(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(len(spec.shapes)))
    head = make_head(state.get("head", "distance"), state["norm"])
    frame, rotation = Frame(tuple(state["centre"]), state["scale"]), state.get("rotation")
    known = tensors["known"].numpy() if "known" in tensors else None
    return SDF([params], spec, head, frame if rotation is None else Pose(np.array(rotation), frame), prior=state["prior"], known=known)


def shipped() -> list[str]:
    """Names of the priors that come with the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors"))


def load(source: str | Path) -> Prior:
    """A prior by its shipped name, or from a file or run folder. Raises UsageError (with the nearest name) or CheckpointError."""
    path = Path(source)
    if str(source) in shipped():
        path = SHIPPED / f"{source}.safetensors"
    elif path.is_dir():
        path = path / "prior.safetensors"
        if not path.exists():
            raise UsageError("the folder holds no trained prior", where=source, cause="no run folder, or a run stopped before its first save",
                             fix="metasdf train EXPERIMENT --data DATA --run RUN")  # fmt: skip
    elif not path.is_file():
        near = difflib.get_close_matches(str(source), shipped(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no prior {str(source)!r}", cause="a misspelt name or path",
                         fix=f"{hint}shipped: {', '.join(shipped()) or 'none'}; or give a file or run folder")  # fmt: skip
    tensors, state = load_state(path, kind="prior")
    try:
        experiment: Experiment = from_dict(Experiment, state["experiment"])
        conditioner = build_conditioner(experiment)
        conditioner.load_state_dict({name: t.float() for name, t in tensors.items()})
        return Prior(experiment, conditioner, extent=float(state["extent"]), card=state["card"]).eval()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the prior does not fit this version of metasdf ({error})", where=path, cause="it was written by another version",
                              fix="install the version named in its card, or train it again") from error  # fmt: skip


def _row(t: Tensor, row: int, own_dims: int) -> Tensor:
    """A task's own tensor, or the shared one."""
    return t[row] if t.dim() > own_dims else t.detach()


def _numpy(x: Any) -> NDArray[Any]:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _check_points(x: NDArray[Any], dim: int) -> NDArray[np.float64]:
    if x.ndim != 2 or x.shape[1] != dim:
        cause = ""
        if x.ndim == 2 and x.shape[0] == dim:
            cause = "the array is transposed: points go down the rows"
        elif x.ndim == 2 and x.shape[1] in (2, 3):
            cause = f"{x.shape[1]}D points for a prior of {dim}D shapes"
        raise InputError(f"points must have shape (N, {dim}), got {x.shape}", cause=cause,
                         fix="pass points.T" if "transposed" in cause else f"give N points with {dim} coordinates each")  # fmt: skip
    try:
        x = x.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"points are not numbers (dtype {x.dtype})") from error
    bad = int((~np.isfinite(x)).any(1).sum())
    if bad:
        raise InputError(f"{bad} of {len(x)} points are NaN or infinite", cause="missing returns of a scanner, or a failed computation",
                         fix="remove them: points[np.isfinite(points).all(1)]")  # fmt: skip
    if len(x) < 3:
        raise InputError(f"{len(x)} points cannot show a shape", fix="give at least 3, better several hundred")
    return x


def _check_normals(normals: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Of length 1."""
    if normals.shape != shape:
        raise InputError(f"normals must have shape {shape}, one for each point, got {normals.shape}")
    normals = normals.astype(np.float64)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    if bad := int((~((length > 0) & (length < np.inf))).sum()):
        raise InputError(f"{bad} of {len(normals)} normals are zero or not finite", fix="leave those points out")
    return normals / length


def _check_values(y: NDArray[Any], n: int) -> NDArray[np.float64]:
    if y.shape not in ((n,), (n, 1)):
        raise InputError(f"values must have shape ({n},) or ({n}, 1), one for each point, got {y.shape}")
    y = y.astype(np.float64).reshape(n, 1)
    bad = int((~np.isfinite(y)).sum())
    if bad:
        raise InputError(f"{bad} of {n} distances are NaN or infinite", fix="remove those samples")
    return y
