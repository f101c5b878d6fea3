# SPDX-License-Identifier: Apache-2.0
"""Objects, dictionaries, strings and integers: what most Python programs do most of the time; argument: how many times."""
import sys


class Node:
    __slots__ = ("key", "left", "right")

    def __init__(self, key):
        self.key, self.left, self.right = key, None, None


def tree(keys):
    root = None
    for key in keys:
        if root is None:
            root = Node(key)
            continue
        at = root
        while key != at.key:
            side = "left" if key < at.key else "right"
            below = getattr(at, side)
            if below is None:
                setattr(at, side, Node(key))
            at = below or getattr(at, side)
    return root


def depth(node):
    return 0 if node is None else 1 + max(depth(node.left), depth(node.right))


def numbers(count, seed=1):
    for _ in range(count):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        yield seed


def words(count):
    seen = {}
    for n in numbers(count):
        word = f"w{n % 997:03d}"
        seen[word] = seen.get(word, 0) + len(word)
    return ",".join(f"{k}={v}" for k, v in sorted(seen.items()))


def queens(n, row=0, columns=0, left=0, right=0):
    if row == n:
        return 1
    free, found = ~(columns | left | right) & ((1 << n) - 1), 0
    while free:
        bit = free & -free
        free ^= bit
        found += queens(n, row + 1, columns | bit, (left | bit) << 1, (right | bit) >> 1)
    return found


def loop(n):
    total = 0
    for i in range(n):
        if i % 3 == 0:
            total += i * i
        else:
            total ^= i
    return total & 0xFFFFFFFF


for _ in range(int(sys.argv[1])):
    print(depth(tree(numbers(8000))), len(words(100000)), hash(len(words(1000))), queens(8), loop(600000),
          pow(3, 40000) % 1000007, sum(sorted(numbers(50000))[::1000]))
