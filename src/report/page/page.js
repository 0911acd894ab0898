// Tables that sort by a click on a heading or by Enter and Space on it, and a filter over long ones.
'use strict'
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0]
  const headings = [...table.tHead.rows[0].cells]
  const order = new Map([...body.rows].map((row, i) => [row, i]))
  const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim()
  headings.forEach((heading, column) => {
    const kind = heading.dataset.sort
    if (!kind) return
    const button = document.createElement('button')
    button.type = 'button'
    button.append(...heading.childNodes)
    heading.append(button)
    heading.setAttribute('aria-sort', 'none')
    button.addEventListener('click', () => {
      // Numbers are most often looked at from the top, names from A.
      const first = kind === 'number' ? 'descending' : 'ascending'
      const second = kind === 'number' ? 'ascending' : 'descending'
      const direction = heading.getAttribute('aria-sort') === first ? second : first
      headings.forEach(h => h.hasAttribute('aria-sort') && h.setAttribute('aria-sort', 'none'))
      heading.setAttribute('aria-sort', direction)
      const sign = direction === 'ascending' ? 1 : -1
      const compare = (a, b) => {
        const [x, y] = [value(a, column), value(b, column)]
        if (kind !== 'number') return sign * x.localeCompare(y, undefined, { numeric: true })
        const [m, n] = [parseFloat(x), parseFloat(y)]
        // What is not known stays at the end, whichever way the rest is sorted.
        if (Number.isNaN(m) || Number.isNaN(n)) return Number.isNaN(m) - Number.isNaN(n)
        return sign * (m - n)
      }
      body.append(...[...body.rows].sort((a, b) => compare(a, b) || order.get(a) - order.get(b)))
    })
  })
  if (body.rows.length < 15) continue
  const filter = document.createElement('label')
  const count = document.createElement('span')
  const input = document.createElement('input')
  filter.className = 'filter'
  input.type = 'search'
  count.setAttribute('aria-live', 'polite')
  filter.append('Show rows with ', input, ' ', count)
  input.addEventListener('input', () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(w => w)
    let shown = 0
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase()
      row.hidden = !words.every(w => text.includes(w))
      shown += !row.hidden
    }
    count.textContent = words.length ? `${shown} of ${body.rows.length}` : ''
  })
  table.closest('.table').before(filter)
}
