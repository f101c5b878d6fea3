#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the decoder's C table and the list of native mnemonics from insn.table.

usage: gen_insn.py insn.table insn_ids.def OUT_TABLE OUT_IDS
"""
import re
import sys

SIZES = {"b": 1, "w": 2, "d": 4, "q": 8, "dq": 16, "qq": 32, "t": 10,
         "v": "OSZ_V", "z": "OSZ_Z", "y": "OSZ_Y", "x": "OSZ_X", "n": "OSZ_N", "p": "OSZ_P",
         "a": "OSZ_A", "e": "OSZ_ENV", "s": "OSZ_SAVE", "s6": "OSZ_DTR", "": 0}
KINDS = {"E": "GPR_RM", "R": "GPR_RM", "M": "GPR_RM", "G": "GPR_REG", "B": "GPR_VVVV", "Z": "GPR_OPCODE",
         "V": "XMM_REG", "W": "XMM_RM", "U": "XMM_RM", "H": "XMM_VVVV", "L": "XMM_IS4", "P": "MMX_REG",
         "Q": "MMX_RM", "N": "MMX_RM", "F": "X87_RM", "S": "SEG_REG", "C": "CR_REG", "D": "DR_REG",
         "O": "MOFFS", "X": "STR_SRC", "Y": "STR_DST"}
FIXED = {"AL": (0, 1), "AX": (0, 2), "CL": (1, 1), "DX": (2, 2), "rAX": (0, "OSZ_V"), "eAX": (0, "OSZ_Z")}
SEGS = {"ES": 0, "CS": 1, "SS": 2, "DS": 3, "FS": 4, "GS": 5}
IMMS = {"Ib": "IMM_SB", "Ub": "IMM_UB", "Iw": "IMM_UW", "Iz": "IMM_Z", "Iv": "IMM_V", "I2b": "IMM_2B",
        "Jb": "IMM_SB", "Jz": "IMM_JZ", "Ap": "IMM_PTR"}
FLAGS = {"C": 0x001, "P": 0x004, "A": 0x010, "Z": 0x040, "S": 0x080, "O": 0x800}
ALL = sum(FLAGS.values())
CC = ["O", "O", "C", "C", "Z", "Z", "CZ", "CZ", "S", "S", "P", "P", "SO", "SO", "SOZ", "SOZ"]
GPRS = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11"]
ATTRS = {"lock": "LOCKABLE", "no64": "NO64", "only64": "ONLY64", "def64": "DEF64", "f64": "FORCE64",
         "cpl0": "CPL0", "noreal": "NO_REAL", "align": "ALIGNED", "noacc": "NO_MEM_ACCESS", "x87": "X87",
         "nowait": "X87_NOWAIT", "mmx": "MMX", "sse": "SSE", "avx": "AVX", "vgpr": "VEX_W_GPR",
         "branch": "BRANCH", "end": "ENDS_BLOCK", "zx32": "ZX32", "vsib": "VSIB"}


def flags(text):
    return ALL if text == "all" else sum(FLAGS[c] for c in text)


def expand_family(line):
    """The SIMD families of insn.table: one line to several."""
    enc, rest = [x.strip() for x in line.split("|", 1)]
    tok = enc.split()
    fam, parts = tok[0], rest.split("|")
    names, attrs = parts[0].split(), (parts[1] if len(parts) > 1 else "")
    name = names[0]
    m = re.search(r"cpu:(\w+)", attrs)
    feat = m.group(1) if m else None
    gfni = feat == "GFNI"
    f = feat or "SSE2"
    if fam == "FMA":
        op = int(tok[1], 16)
        for w, s in ((0, "PS"), (1, "PD")):
            yield f"VEX 66 0F38 {op:02X} W{w} | {name}{s} +Vx Hx Wx | avx cpu:FMA"
        if len(tok) > 2:
            for w, s, z in ((0, "SS", "d"), (1, "SD", "q")):
                yield f"VEX 66 0F38 {op + 1:02X} W{w} | {name}{s} +Vdq Hdq W{z} | avx cpu:FMA"
        return
    e = " ".join(tok[1:])
    imm = " Ub" if fam in ("F3I", "P3I") else ""
    if fam in ("I3", "I3L", "I3S", "I2"):
        mm = feat or ("SSE" if name in ("PAVGB", "PAVGW", "PMAXSW", "PMAXUB", "PMINSW", "PMINUB", "PMULHUW",
                                        "PSADBW") else "SSE2" if name in ("PADDQ", "PSUBQ", "PMULUDQ") else "MMX")
        q = "Qd" if fam == "I3L" else "Qq"
        plus, h, w = ("", "", "Wx") if fam == "I2" else ("+", " Hx", "Wdq" if fam == "I3S" else "Wx")
        yield f"NP {e} | {name} {plus}Pq {q} | mmx cpu:{mm}"
        yield f"66 {e} | {name} {plus}Vdq Wdq | sse align cpu:{f}"
        yield f"VEX 66 {e} L0 | {name} Vx{h} {w} | avx cpu:AVX"
        yield f"VEX 66 {e} L1 | {name} Vx{h} {w} | avx cpu:AVX2"
    elif fam == "X3":
        yield f"66 {e} | {name} +Vdq Wdq | sse align cpu:{f}"
        if gfni:
            yield f"VEX 66 {e} W0 | {name} Vx Hx Wx | avx cpu:GFNI"
        else:
            yield f"VEX 66 {e} L0 | {name} Vx Hx Wx | avx cpu:AVX"
            yield f"VEX 66 {e} L1 | {name} Vx Hx Wx | avx cpu:AVX2"
    elif fam == "XI3":
        yield f"66 {e} | {name} +Vdq Wdq Ub | sse align cpu:{f}"
        yield f"VEX 66 {e} L0 | {name} Vx Hx Wx Ub | avx cpu:AVX"
        yield f"VEX 66 {e} L1 | {name} Vx Hx Wx Ub | avx cpu:{'AVX' if 'float' in attrs else 'AVX2'}"
    elif fam == "SHI":
        yield f"NP {e} reg | {name} +Nq Ub | mmx cpu:MMX"
        yield f"66 {e} reg | {name} +Udq Ub | sse cpu:SSE2"
        yield f"VEX 66 {e} reg L0 | {name} Hx Ux Ub | avx cpu:AVX"
        yield f"VEX 66 {e} reg L1 | {name} Hx Ux Ub | avx cpu:AVX2"
    elif fam == "SHX":
        yield f"66 {e} reg | {name} +Udq Ub | sse cpu:SSE2"
        yield f"VEX 66 {e} reg L0 | {name} Hx Ux Ub | avx cpu:AVX"
        yield f"VEX 66 {e} reg L1 | {name} Hx Ux Ub | avx cpu:AVX2"
    elif fam == "PMX":
        n = int(names[1])
        yield f"66 {e} | {name} Vdq W{n} | sse cpu:SSE41"
        yield f"VEX 66 {e} L0 | {name} Vdq W{n} | avx cpu:AVX"
        yield f"VEX 66 {e} L1 | {name} Vqq W{2 * n} | avx cpu:AVX2"
    elif fam in ("F3", "F3I", "F2", "FS2", "P3", "P3I"):
        two = fam in ("F2", "FS2")
        plus, h = ("", "") if two else ("+", " Hx")
        for pp, s, sse in (("NP", "PS", "SSE"), ("66", "PD", "SSE2")):
            if fam == "FS2" and s == "PD":
                continue
            yield f"{pp} {e} | {name}{s} {plus}Vdq Wdq{imm} | sse align cpu:{sse}"
            yield f"VEX {pp} {e} | {name}{s} Vx{h} Wx{imm} | avx cpu:AVX"
        if fam in ("P3", "P3I"):
            return
        for pp, s, z, sse in (("F3", "SS", "d", "SSE"), ("F2", "SD", "q", "SSE2")):
            if fam == "FS2" and s == "SD":
                continue
            yield f"{pp} {e} | {name}{s} +Vdq W{z}{imm} | sse cpu:{sse}"
            yield f"VEX {pp} {e} | {name}{s} Vdq Hdq W{z}{imm} | avx cpu:AVX"
    elif fam == "AS":
        for pp, s in (("F2", "PS"), ("66", "PD")):
            yield f"{pp} {e} | {name}{s} +Vdq Wdq | sse align cpu:SSE3"
            yield f"VEX {pp} {e} | {name}{s} Vx Hx Wx | avx cpu:AVX"
    else:
        sys.exit(f"unknown family {fam}: {line}")


FAMILIES = {"I3", "I3L", "I3S", "I2", "X3", "XI3", "SHI", "SHX", "PMX", "F3I", "F2", "FS2", "P3", "P3I", "AS", "FMA"}


def is_family(tok):
    # F3 is both a family and a prefix: as a family, a map and an opcode follow, and one name without operands
    return tok[0] in FAMILIES


def lines(path):
    for n, line in enumerate(open(path), 1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        enc, rest = line.split("|", 1)
        tok = enc.split()
        plain = len(rest.split("|")[0].split()) == 1 and "|" not in rest
        if is_family(tok) and not (tok[0] == "F2" and not plain) or (tok[0] == "F3" and plain):
            yield from expand_family(line)
        else:
            yield line


def operand(text):
    access = None
    if text[0] in "+?=":
        access = {"+": "OPND_RW", "?": "OPND_READ", "=": "OPND_WRITE"}[text[0]]
        text = text[1:]
    if text in FIXED:
        r, z = FIXED[text]
        return ("FIXED_GPR", access, r, z, None, text)
    if text in SEGS:
        return ("FIXED_SEG", access, SEGS[text], 2, None, text)
    if text == "1":
        return ("ONE", access, 0, 1, None, text)
    if text in IMMS:
        kind = "REL" if text[0] == "J" else "IMM2" if text == "I2b" else "IMM"
        return (kind, access, 0, 0, IMMS[text], text)
    z = text[1:]
    size = int(z) if z.isdigit() else SIZES[z]
    return (KINDS[text[0]], access, 0, size, None, text)


MAPS = {"1": 0, "0F": 1, "0F38": 2, "0F3A": 3}
rows = []


def add(line):
    enc, ops, attrs = (x.strip() for x in line.split("|"))
    tok = enc.split()
    vex = tok[0] == "VEX"
    if vex:
        tok = tok[1:]
    pp = 0xFF
    if tok[0] in ("NP", "66", "F3", "F2"):
        pp = 0 if tok[0] == "NP" else int(tok[0], 16)
        tok = tok[1:]
    mp, opc = MAPS[tok[0]], tok[1]
    reg = w = l = 0xFF
    modrm = 0x100
    mod = norexb = 0
    for t in tok[2:]:
        if t[0] == "/":
            reg = int(t[1])
        elif t == "mem":
            mod = 1
        elif t == "reg":
            mod = 2
        elif t == "=none":
            norexb = 1
        elif t[0] == "=":
            modrm = int(t[1:], 16)
        elif t[0] == "W":
            w = int(t[1])
        elif t[0] == "L":
            l = int(t[1])
        else:
            sys.exit(f"bad token {t}: {line}")
    name, *opt = ops.split()
    opnds = [operand(o) for o in opt]
    a, fr, fw, gr, gw, feat = [], 0, 0, 0, 0, "CPUF_NONE"
    has_cc = wo = feat64 = False
    for t in attrs.split():
        if t in ATTRS:
            a.append("INSN_" + ATTRS[t])
        elif t.startswith("w="):
            fw = flags(t[2:])
        elif t.startswith("r="):
            fr = flags(t[2:])
        elif t.startswith("gr="):
            gr = sum(1 << GPRS.index(g) for g in t[3:].split(","))
        elif t.startswith("gw="):
            gw = sum(1 << GPRS.index(g) for g in t[3:].split(","))
        elif t.startswith("cpu:"):
            feat = "CPUF_" + t[4:]
        elif t.startswith("cpu64:"):
            feat64 = t[6:]
        elif t == "cc":
            has_cc = True
        elif t == "wo":
            wo = True
        elif t == "fx":
            a += ["INSN_X87", "INSN_X87_NOWAIT"]
        elif t == "mmxtoo":
            a.append("INSN_MMX")
        elif t in ("x87wait", "cpl0ud", "xs", "bcast"):
            pass
        else:
            sys.exit(f"bad attribute {t}: {line}")
    if "bcast" in attrs.split(): # the register source came with AVX2
        feat = "CPUF_AVX"
    imms = [o[4] for o in opnds if o[4]]
    if any(o[0] == "XMM_IS4" for o in opnds):
        imms.append("IMM_UB")
    if any(o[0].startswith("GPR") and o[3] == 1 for o in opnds):
        a.append("INSN_HIGH8_OK")
    codes = {o[5][0] for o in opnds if o[0].endswith(("_RM", "_REG"))}
    uses_rm = any(o[0] in ("GPR_RM", "XMM_RM", "MMX_RM", "X87_RM") for o in opnds)
    fixed_fields = any(o[0] in ("GPR_REG", "XMM_REG", "MMX_REG", "SEG_REG", "CR_REG", "DR_REG") for o in opnds)
    has_modrm = uses_rm or fixed_fields or reg != 0xFF or modrm != 0x100 or mod
    if not mod and codes & {"M"}:
        mod = 1
    if not mod and codes & {"U", "N", "R"} and not (mp == 1 and opc in ("20", "21", "22", "23")):
        mod = 2
    if mod == 1:
        a.append("INSN_RM_MEM_ONLY")
    if mod == 2:
        a.append("INSN_RM_REG_ONLY")
    uses_vvvv = any(o[0] in ("GPR_VVVV", "XMM_VVVV") for o in opnds)
    if opc.endswith("+r"):
        variants = [(int(opc[:-2], 16) + i, fr) for i in range(8)]
    elif opc.endswith("+c"):
        variants = [(int(opc[:-2], 16) + i, flags(CC[i])) for i in range(16)]
    else:
        variants = [(int(opc, 16), fr)]
    if has_cc and len(variants) != 16:
        sys.exit(f"cc without +c: {line}")
    # ENDS_BLOCK of POP_SEG SS etc. is set by the row; MOV to segment registers too
    for o, r in variants:
        rows.append(dict(name=name, vex=vex, pp=pp, map=mp, opc=o, reg=reg, mod=mod, modrm=modrm, w=w, l=l,
                         norexb=norexb, ops=opnds, attr=a, fr=r, fw=fw, gr=gr, gw=gw, feat=feat, feat64=feat64,
                         imms=imms, has_modrm=has_modrm, vvvv=uses_vvvv, wo=wo, line=line))


def main():
    table, ids_def, out_table, out_ids = sys.argv[1:]
    for line in lines(table):
        add(line)
    hand, system, section = [], [], None
    for line in open(ids_def):
        if "user level" in line:
            section = hand
        elif "system level" in line:
            section = system
        elif "native:" in line:
            section = None
        if section is not None:
            section += re.findall(r"X\((\w+)\)", line)
    natives = sorted({r["name"] for r in rows} - set(hand) - set(system))
    with open(out_ids, "w") as f:
        f.write("/* Generated from insn.table by gen_insn.py. */\n")
        f.writelines(f"X({n})\n" for n in natives)
    rows.sort(key=lambda r: (r["vex"], r["map"], r["opc"], r["norexb"] == 0, r["pp"] == 0xFF, r["modrm"] == 0x100,
                             r["reg"] == 0xFF))
    index = {}
    with open(out_table, "w") as f:
        f.write("/* Generated from insn.table by gen_insn.py. */\n")
        f.write("static const struct insn_row insn_rows[] = {\n")
        for i, r in enumerate(rows):
            key = (4 if r["vex"] else 0) + r["map"], r["opc"]
            first, n = index.get(key, (i, 0))
            index[key] = first, n + 1
            kind = "INSN_HAND" if r["name"] in hand else "INSN_SYSTEM" if r["name"] in system else "INSN_NATIVE"
            ops = []
            for k, (kd, acc, reg, size, _, _) in enumerate(r["ops"]):
                acc = acc or ("OPND_WRITE" if k == 0 else "OPND_READ")
                ops.append(f"{{ OPND_{kd}, {acc}, {reg}, {size} }}")
            attr = " | ".join(dict.fromkeys(r["attr"])) or "0"
            imms = (r["imms"] + ["IMM_NONE", "IMM_NONE"])[:2]
            m = (f"{r['pp']:#x}, {r['reg']:#x}, {r['mod']}, {r['modrm']:#x}, {r['w']:#x}, {r['l']:#x}, "
                 f"{r['norexb']}, {int(bool(r['has_modrm']))}, {int(r['vvvv'])}, {int(r['wo'])}, "
                 f"{{ {imms[0]}, {imms[1]} }}")
            f.write(f"\t{{ {{ I_{r['name']}, {kind}, {r['feat']}, {attr}, {{ {', '.join(ops)} }}, "
                    f"{r['fr']:#x}, {r['fw']:#x}, {r['gr']:#x}, {r['gw']:#x} }}, {m} }},\n")
        f.write("};\n\nstatic const struct insn_range insn_index[7][256] = {\n")
        # 0..3 legacy maps, 4..6 VEX maps 0F 0F38 0F3A
        for (mp, opc), (first, n) in sorted(index.items()):
            mp = mp - 1 if mp > 4 else mp
            f.write(f"\t[{mp}][{opc:#x}] = {{ {first}, {n} }},\n")
        f.write("};\n")


main()
