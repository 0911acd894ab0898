// Volumes side by side under one crosshair, drawn by NiiVue, which comes packed in the page. Where WebGL 2 or
// DecompressionStream is missing, the page shows its pictures of slices instead.
'use strict'
;(() => {
  const still = (figure, why) => {
    figure.classList.add('still')
    figure.querySelector('.unable').textContent = why
  }
  const bytes = base64 => Uint8Array.from(atob(base64.trim()), c => c.charCodeAt(0))

  // NiiVue as a script of this page: unpacked, and run from memory.
  let niivueReady
  const niivueOnce = () => (niivueReady ??= (async () => {
    const packed = new Blob([bytes(document.getElementById('niivue').textContent)])
    const text = await new Response(packed.stream().pipeThrough(new DecompressionStream('gzip'))).text()
    const script = document.createElement('script')
    script.src = URL.createObjectURL(new Blob([text], { type: 'text/javascript' }))
    await new Promise((resolve, reject) => {
      script.onload = resolve
      script.onerror = () => reject(new Error('the viewer could not be unpacked'))
      document.head.append(script)
    })
    URL.revokeObjectURL(script.src)
    return window.niivue
  })())

  async function start(figure) {
    const { Niivue, NVImage } = await niivueOnce()
    const canvases = [...figure.querySelectorAll('canvas')]
    const [scan, plane] = [figure.querySelector('.scan'), figure.querySelector('.plane')]
    const where = figure.querySelector('output')
    const narrow = window.matchMedia('(max-width: 44rem)')
    const viewers = []
    for (const canvas of canvases) {
      const viewer = new Niivue({
        backColor: [0, 0, 0, 1],
        crosshairColor: [0.94, 0.89, 0.26, 0.7],
        crosshairWidth: 0.9,
        crosshairWidthUnit: 'percent',
        isCornerOrientationText: true,
        fontColor: [0.92, 0.78, 0.47, 1],
        dragAndDropEnabled: false,
        scrollRequiresFocus: true,
        clipPlaneHotKey: '',
        cycleClipPlaneHotKey: '',
        viewModeHotKey: '',
        logLevel: 'error',
        loadingText: '',
        multiplanarShowRender: 0,
        multiplanarPadPixels: 4,
        isNearestInterpolation: false,
      })
      // A canvas that is not shown, as on paper, has no size to draw at.
      const draw = viewer.drawScene.bind(viewer)
      viewer.drawScene = () => Math.min(canvas.width, canvas.height) > 16 && draw()
      await viewer.attachToCanvas(canvas, false)
      // 0 is what was hidden from the model; air is 1.
      viewer.addColormap('hidden', { R: [44, 0, 255], G: [50, 0, 255], B: [66, 0, 255], A: [255, 255, 255], I: [0, 1, 255] })
      viewers.push(viewer)
    }
    // For scripts that look on.
    figure.viewers = viewers
    const say = viewer => {
      const voxel = viewer.frac2vox(viewer.scene.crosshairPos)
      where.textContent = `x ${voxel[0]}  y ${voxel[1]}  z ${voxel[2]}`
    }
    // Whichever moved takes the others along.
    const follow = leader => {
      for (const viewer of viewers) {
        if (viewer === leader) continue
        viewer.scene.crosshairPos = [...leader.scene.crosshairPos]
        viewer.scene.pan2Dxyzmm = [...leader.scene.pan2Dxyzmm]
        viewer.drawScene()
      }
      say(leader)
    }
    const steps = {
      ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowDown: [0, -1, 0], ArrowUp: [0, 1, 0],
      PageDown: [0, 0, -1], PageUp: [0, 0, 1],
    }
    viewers.forEach((viewer, i) => {
      viewer.onLocationChange = () => follow(viewer)
      canvases[i].addEventListener('keydown', event => {
        const step = steps[event.key]
        // NiiVue has keys of its own; these are the ones that the page speaks of.
        if (event.key !== 'Tab') event.stopImmediatePropagation()
        if (!step) return
        event.preventDefault()
        viewer.moveCrosshairInVox(...step)
      }, { capture: true })
    })
    const lay = () => {
      for (const viewer of viewers) {
        // 3 is a row of planes, 2 two by two.
        viewer.setMultiplanarLayout(narrow.matches ? 3 : 2)
        viewer.setSliceType(Number(plane.value))
      }
    }
    const show = async () => {
      figure.setAttribute('aria-busy', 'true')
      const chosen = scan.value
      for (const picture of figure.querySelectorAll('.slices figure')) picture.hidden = picture.dataset.scan !== chosen
      for (const [i, viewer] of viewers.entries()) {
        const packed = figure.querySelector(`script[data-scan="${chosen}"][data-column="${i}"]`)
        const volume = await NVImage.loadFromBase64({
          base64: packed.textContent.trim(), name: `${i}.nii.gz`, colormap: 'hidden', cal_min: 0, cal_max: 255,
        })
        while (viewer.volumes.length) viewer.removeVolumeByIndex(0)
        viewer.addVolume(volume)
      }
      lay()
      figure.removeAttribute('aria-busy')
      figure.dataset.shown = chosen
      say(viewers[0])
    }
    scan.addEventListener('change', show)
    plane.addEventListener('change', lay)
    narrow.addEventListener('change', lay)
    await show()
  }

  for (const figure of document.querySelectorAll('.viewer')) {
    const webgl = document.createElement('canvas').getContext('webgl2')
    if (!webgl || !('DecompressionStream' in window)) {
      still(figure, 'This browser has no WebGL 2, which the viewer draws with; here are slices instead.')
      continue
    }
    webgl.getExtension('WEBGL_lose_context')?.loseContext()
    const near = new IntersectionObserver(entries => {
      if (!entries.some(e => e.isIntersecting)) return
      near.disconnect()
      start(figure).catch(error => {
        still(figure, `The viewer could not start (${error?.message ?? error}); here are slices instead.`)
      })
    }, { rootMargin: '400px' })
    near.observe(figure)
  }
})()
