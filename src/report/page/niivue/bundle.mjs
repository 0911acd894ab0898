// Bundles the part of NiiVue that draws volumes into niivue.min.js.gz and collects licences in LICENCES.txt:
//   npm ci && node bundle.mjs
// Left out, by empty modules: readers of meshes and of Zarr (with its compressors), the material of surfaces, all
// colour maps but grey and the one that NiiVue starts with. That is 257 KB where the whole is 797 KB.
import { build } from 'esbuild'
import { existsSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { gzipSync } from 'node:zlib'

const source = resolve('node_modules/@niivue/niivue/src')
const leftOut = {
  '@/nvmesh-loaders': 'export class NVMeshLoaders {}',
  '@/nvimage/zarr': 'export class NVZarrHelper {} export class ZarrChunkClient {} export class ZarrChunkCache {}',
  '@/nvimage/zarr/NVZarrHelper': 'export class NVZarrHelper {}',
  '@/nvimage/ZarrProcessor': 'export const loadZarrData = undefined',
  'zarrita': '',
  '@ungap/structured-clone': 'export const serialize = x => x, deserialize = x => x',
  '@/cmaps': `export { default as gray } from '${source}/cmaps/gray.json'
    export { default as $itksnap } from '${source}/cmaps/_itksnap.json'`,
}
// `@/` is NiiVue's own name for its sources.
const file = path => [path + '.ts', join(path, 'index.ts'), path].find(p => existsSync(p) && statSync(p).isFile())
const plugin = {
  name: 'niivue',
  setup(b) {
    b.onResolve({ filter: /./ }, ({ path }) => {
      if (path in leftOut) return { path, namespace: 'left-out' }
      if (path.startsWith('@/')) return { path: file(join(source, path.slice(2))) }
    })
    b.onLoad({ filter: /./, namespace: 'left-out' }, ({ path }) => ({ contents: leftOut[path], resolveDir: source }))
    // Surfaces are never drawn, but their material is loaded: one pixel.
    const pixel = 'data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7'
    b.onLoad({ filter: /\.jpg$/ }, () => ({ contents: `export default '${pixel}'`, loader: 'js' }))
  },
}
const entry = `
  export { Niivue } from '${source}/niivue/index.ts'
  export { NVImage } from '${source}/nvimage/index.ts'`
const result = await build({
  stdin: { contents: entry, resolveDir: '.' },
  bundle: true,
  minify: true,
  format: 'iife',
  globalName: 'niivue',
  target: 'es2022',
  loader: { '.png': 'dataurl' },
  legalComments: 'none',
  metafile: true,
  write: false,
  plugins: [plugin],
})
writeFileSync('niivue.min.js.gz', gzipSync(result.outputFiles[0].contents, { level: 9 }))

const inside = Object.values(result.metafile.outputs)[0].inputs
const used = Object.keys(inside).map(path => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//)?.[1])
const licences = [...new Set(used.filter(name => name))].sort().map(name => {
  const folder = join('node_modules', name)
  const { version, license } = JSON.parse(readFileSync(join(folder, 'package.json')))
  const text = readdirSync(folder).find(f => /^licen[cs]e/i.test(f))
  // NiiVue's package has no licence file; this is the one of its repository.
  const words = text ? readFileSync(join(folder, text), 'utf8') : readFileSync('LICENCE.niivue.txt', 'utf8')
  return `${name} ${version} (${license})\n\n${words.trim()}\n`
})
writeFileSync('LICENCES.txt', licences.join(`\n${'-'.repeat(72)}\n\n`))
