// SPDX-License-Identifier: Apache-2.0
// Code that the just-in-time compiler finds worth compiling: objects, typed arrays, closures, strings; argument: how many times.
'use strict';
function sieve(n) {
	const composite = new Uint8Array(n + 1);
	let count = 0;
	for (let i = 2; i <= n; i++) {
		if (composite[i]) continue;
		count++;
		for (let j = i * 2; j <= n; j += i) composite[j] = 1;
	}
	return count;
}
class Vector {
	constructor(x, y) { this.x = x; this.y = y; }
	add(o) { return new Vector(this.x + o.x, this.y + o.y); }
	turn() { return new Vector(-this.y, this.x); }
}
function walk(n) {
	let at = new Vector(0, 0), by = new Vector(1, 3);
	for (let i = 0; i < n; i++) {
		at = at.add(by);
		if (i % 7 === 0) by = by.turn();
	}
	return at.x * 31 + at.y;
}
function strings(n) {
	const seen = new Map();
	for (let i = 0; i < n; i++) {
		const key = 'k' + (i * 7919) % 1013;
		seen.set(key, (seen.get(key) || 0) + key.length);
	}
	return JSON.stringify([...seen].sort()).length;
}
function made(n) { // code made at run time
	let sum = 0;
	for (let i = 0; i < n; i++)
		sum += new Function('a', `let s = ${i}; for (let k = 0; k < 2000; k++) s = (s * 31 + a + k) | 0; return s;`)(i);
	return sum;
}
for (let n = Number(process.argv[2]); n > 0; n--)
	console.log(sieve(1000000), walk(2000000), strings(200000), made(60));
