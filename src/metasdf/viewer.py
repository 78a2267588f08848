"""A reconstruction in the browser: the scan's points and the surface after each inner step, drawn by viser (the extra `view`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasdf.errors import EmptySurfaceError, InputError, UsageError
from metasdf.geometry.mesh import Mesh
from metasdf.prior import SDF, Prior
from metasdf.solid import Fit, fit_scan

if TYPE_CHECKING:
    import viser

HOST = "127.0.0.1"  # a scan may be private: no other machine sees it
MOST = 200_000  # points that are drawn, so that a browser can turn them


class Step(NamedTuple):
    """The surface after an inner step, in the scan's own units and pose; none where the field has none, and `said` says why."""

    mesh: Mesh | None
    said: str


class Scene(NamedTuple):
    """viser's handles: the points; the surface after each step, None where there is none; the last one as wires; the slider, if there are steps."""

    points: Any
    steps: list[Any]
    wires: Any
    slider: Any


def surfaces(sdf: SDF, *, resolution: int = 64) -> list[Step]:
    """The surface before the first inner step and after each; and, where the fit was refined, after that."""
    steps = []
    for field in (*(sdf.after(j) for j in range(len(sdf.path))), *([sdf] if sdf.refined else [])):
        try:
            found = field.extract(resolution=resolution)
            steps.append(Step(found.mesh, "; ".join((f"{len(found.mesh.faces):,} faces", *found.notes))))
        except (EmptySurfaceError, InputError) as error:
            steps.append(Step(None, error.what))
    return steps


def show(server: viser.ViserServer, fit: Fit, steps: list[Step]) -> Scene:
    """Put the points and the surfaces of the steps into a server's scene, all less the frame's centre, and what chooses among them."""
    pose, last = fit.sdf.pose, len(steps) - 1
    size, centre = 1 / fit.sdf.frame.scale, np.asarray(fit.sdf.frame.centre)

    def local(x: NDArray[np.floating]) -> NDArray[np.float32]:
        return (x - centre).astype(np.float32)

    def direction(x: float, y: float, z: float) -> tuple[float, ...]:  # of the cube the prior knows, in the scan's axes and units
        return tuple((pose.from_field(np.array([[x, y, z]]))[0] - centre).tolist())

    up, eye = direction(0, 1, 0), direction(1.2, 0.9, 2)
    server.scene.set_up_direction((up[0], up[1], up[2]))
    camera = server.initial_camera
    camera.position, camera.look_at = (eye[0], eye[1], eye[2]), (0.0, 0.0, 0.0)
    camera.near, camera.far = 1e-3 * size, 1e3 * size
    drawn = fit.surface[:: -(-len(fit.surface) // MOST)]
    points = server.scene.add_point_cloud("/points", local(drawn), (200, 60, 40), point_size=0.006 * size, point_shape="circle", precision="float32")

    def add(name: str, mesh: Mesh, **how: Any) -> Any:
        return server.scene.add_mesh_simple(name, local(mesh.vertices), mesh.faces, **how)

    nodes = [step.mesh and add(f"/step/{j}", step.mesh, color=(150, 170, 200), side="double", visible=j == last) for j, step in enumerate(steps)]
    wires = steps[-1].mesh and add("/wires", steps[-1].mesh, color=(40, 40, 40), wireframe=True, visible=False)
    slider = server.gui.add_slider("step", 0, last, 1, last) if last else None
    said = server.gui.add_markdown(steps[-1].said)
    switched = [(server.gui.add_checkbox(name, node.visible), node) for name, node in (("points", points), ("result, as wires", wires)) if node]

    def change(event: object) -> None:
        chosen = slider.value if slider else last
        said.content = steps[chosen].said
        for j, node in enumerate(nodes):
            if node:
                node.visible = j == chosen
        for box, node in switched:
            node.visible = box.value

    for handle in (slider, *(box for box, _ in switched)):
        if handle:
            handle.on_update(change)
    return Scene(points, nodes, wires, slider)


def view(path: str | Path, prior: Prior, *, resolution: int = 64, port: int = 8080, say: Callable[[str], None] = print, **reading: Any) -> None:
    """Fit the prior to a scan as `solid.fit_scan` does, with its options, and show it at http://localhost:PORT until Ctrl-C; the next free port
    where that is taken. Only this machine is answered. Raises as `fit_scan`, and UsageError where viser is missing."""
    try:
        import viser
    except ImportError as error:
        raise UsageError("metasdf view needs the viser package", cause="it is an extra", fix="pip install 'metasdf[view]'") from error
    fit = fit_scan(path, prior, **reading)
    steps = surfaces(fit.sdf, resolution=resolution)
    for note in fit.notes:
        say(f"note: {note}")
    for j, step in enumerate(steps):
        if step.mesh is None:
            say(f"step {j} shows nothing: {step.said}")
    if len(fit.surface) > MOST:
        say(f"one in {-(-len(fit.surface) // MOST)} of {len(fit.surface):,} points is drawn")
    centre = ", ".join(f"{c:.9g}" for c in fit.sdf.frame.centre)
    say(f"lengths and axes are the scan's; its point ({centre}) is shown at the origin, since browsers draw in single precision")
    server = viser.ViserServer(host=HOST, port=port, label=f"metasdf: {Path(path).name}", verbose=False)
    try:
        show(server, fit, steps)
        refined = ", and what they were refined to" if fit.sdf.refined else ""
        say(f"http://localhost:{server.get_port()} shows {path} and {len(fit.sdf.path) - 1} steps of {prior.name}{refined}; Ctrl-C ends it")
        threading.Event().wait()
    except KeyboardInterrupt:
        say("")
    finally:
        server.stop()
