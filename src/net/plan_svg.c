/* SPDX-License-Identifier: Apache-2.0 */
/* The plan as a drawing: a box for each network with its machines, an arrow for each way between networks. */
#include <stdio.h>
#include <string.h>

#include "net/plan.h"

enum { BOX_W = 230, CARD_H = 44, HEAD_H = 56, GAP = 150, TOP = 110, MARGIN = 30, CLOUD_H = 40 };

/* Names are letters, digits and -, what is open as well; names of domains have no < either: nothing needs escaping. */

static unsigned row_of(const struct policy *p, unsigned port)
{
	unsigned row = 0;

	for (unsigned i = 0; i < port; i++)
		row += p->ports[i].network == p->ports[port].network;
	return row;
}

static int x_of(unsigned network)
{
	return MARGIN + (int)network * (BOX_W + GAP);
}

static int y_of(const struct policy *p, unsigned port)
{
	return TOP + HEAD_H + (int)row_of(p, port) * CARD_H + CARD_H / 2;
}

static void draw_network(const struct policy *p, unsigned i, struct bytes *out)
{
	const struct policy_network *n = &p->networks[i];
	char v4[NET_ADDR_TEXT], v6[NET_ADDR_TEXT];
	int rows = 0, x = x_of(i);

	for (unsigned j = 0; j < p->nports; j++)
		rows += p->ports[j].network == i;
	bytes_printf(out, "<rect class=\"net\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"8\"/>\n",
		     x, TOP, BOX_W, HEAD_H + rows * CARD_H + 10);
	bytes_printf(out, "<text class=\"name\" x=\"%d\" y=\"%d\">%s</text>\n", x + 10, TOP + 20,
		     n->name);
	bytes_printf(out, "<text x=\"%d\" y=\"%d\">%s</text><text x=\"%d\" y=\"%d\">%s</text>\n",
		     x + 10, TOP + 35, net_prefix_format(&n->v4, v4), x + 10, TOP + 49,
		     net_prefix_format(&n->v6, v6));
	for (unsigned j = 0; j < p->nports; j++) {
		const struct policy_port *q = &p->ports[j];
		if (q->network != i)
			continue;
		int y = y_of(p, j) - CARD_H / 2;
		bytes_printf(out, "<rect class=\"card%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"4\"/>\n",
			     p->machines[q->machine].is_quarantined ? " cut" : "", x + 10, y + 3,
			     BOX_W - 20, CARD_H - 8);
		bytes_printf(out, "<text class=\"name\" x=\"%d\" y=\"%d\">%s</text><text x=\"%d\" y=\"%d\">%s</text>\n",
			     x + 18, y + 18, p->machines[q->machine].name, x + 18, y + 32,
			     net_addr_format(&q->v4, v4));
	}
}

static void draw_path(int x1, int y1, int mx, int my, int x2, int y2, struct bytes *out)
{
	bytes_printf(out, "<path class=\"way\" d=\"M%d %d Q%d %d %d %d\"/>\n", x1, y1, mx, my, x2, y2);
}

static void draw_label(const struct plan_access *a, const char *class, int x, int y, struct bytes *out)
{
	bytes_printf(out, "<text class=\"%s\" x=\"%d\" y=\"%d\">", class, x, y);
	plan_access_format(a, out);
	bytes_printf(out, "%s</text>\n", a->is_named ? " by name" : "");
}

static void draw_way(const struct policy *p, unsigned from, int to, struct bytes *out)
{
	unsigned a = p->ports[from].network;
	struct plan_access access;

	if (plan_access(p, from, to, &access) < 0) {
		out->is_failed = true;
		return;
	}
	bool is_open = access.nranges[PLAN_TCP] || access.nranges[PLAN_UDP] ||
		       access.nranges[PLAN_ICMP] || access.nranges[PLAN_OTHER];
	if (is_open && to == POLICY_OUTSIDE) {
		/* One beside the other, the labels one below the other. */
		int row = (int)row_of(p, from), x = x_of(a) + BOX_W - 24 - row * 14;
		draw_path(x, TOP + HEAD_H + row * CARD_H + 3, x, TOP, x, MARGIN + CLOUD_H, out);
		draw_label(&access, "out", x_of(a) + BOX_W - 90, TOP - 26 + row * 12, out);
	} else if (is_open) {
		unsigned b = p->ports[to].network;
		bool is_right = b > a;
		int x1 = x_of(a) + (is_right ? BOX_W - 10 : 10),
		    x2 = x_of(b) + (is_right ? 10 : BOX_W - 10);
		int y1 = y_of(p, from), y2 = y_of(p, (unsigned)to),
		    my = (y1 + y2) / 2 + (is_right ? -12 : 12);
		draw_path(x1, y1, (x1 + x2) / 2, my, x2, y2, out);
		draw_label(&access, "way", (x1 + x2) / 2, (y1 + y2 + 2 * my) / 4 - 4, out);
	}
	plan_access_free(&access);
}

static void draw_forward(const struct policy *p, const struct policy_forward *f, int y, struct bytes *out)
{
	char host[NET_ADDR_TEXT], label[2 * POLICY_NAME_MAX + 2];
	bool is_v6 = !net_addr_is_v4(&f->host_addr);

	bytes_printf(out, "<text x=\"%d\" y=\"%d\">host %s%s%s:%u leads to %s %s/%u</text>\n", MARGIN,
		     y, is_v6 ? "[" : "", net_addr_format(&f->host_addr, host), is_v6 ? "]" : "",
		     f->host_port, policy_port_label(p, f->port, label, sizeof(label)),
		     f->is_udp ? "udp" : "tcp", f->guest_port);
}

void plan_svg(const struct policy *p, struct bytes *out)
{
	unsigned rows = 0;
	bool has_uplink = false;

	for (unsigned i = 0; i < p->nports; i++)
		rows = MAX(rows, row_of(p, i) + 1);
	for (unsigned i = 0; i < p->nnetworks; i++)
		has_uplink |= p->networks[i].has_uplink;
	int width = 2 * MARGIN + (int)p->nnetworks * (BOX_W + GAP) - GAP,
	    height = TOP + HEAD_H + (int)rows * CARD_H + 60 + (int)p->nforwards * 14;
	bytes_printf(
		out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 "
		"0 %d %d\">\n"
		"<style>text{font:11px sans-serif;fill:#333}.name{font-weight:bold;font-size:13px}"
		".net{fill:#f4f6f8;stroke:#8899aa}.card{fill:#fff;stroke:#5577aa}.cut{fill:#fdd;"
		"stroke:#c33}"
		"path.way{fill:none;stroke:#286;stroke-width:1.5;marker-end:url(#a)}"
		"text.way{fill:#175;text-anchor:middle}text.out{fill:#175;text-anchor:end}</"
		"style>\n"
		"<defs><marker id=\"a\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" "
		"markerWidth=\"8\" markerHeight=\"8\" "
		"orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#286\"/></marker></defs>\n"
		"<text class=\"name\" x=\"%d\" y=\"18\">lab %s</text>\n",
		width, height, width, height, MARGIN, p->name);
	if (has_uplink)
		bytes_printf(out,
			     "<rect class=\"net\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" "
			     "rx=\"20\"/>"
			     "<text class=\"name\" x=\"%d\" y=\"%d\">internet</text>\n",
			     MARGIN, MARGIN, width - 2 * MARGIN, CLOUD_H, MARGIN + 16, MARGIN + 25);
	for (unsigned i = 0; i < p->nnetworks; i++)
		draw_network(p, i, out);
	for (unsigned from = 0; from < p->nports; from++) {
		for (unsigned to = 0; to < p->nports; to++)
			if (p->ports[from].machine != p->ports[to].machine &&
			    p->ports[from].network != p->ports[to].network)
				draw_way(p, from, (int)to, out);
		draw_way(p, from, POLICY_OUTSIDE, out);
	}
	for (unsigned i = 0; i < p->nforwards; i++)
		draw_forward(p, &p->forwards[i], height - 30 - (int)(p->nforwards - 1 - i) * 14, out);
	bytes_printf(out,
		     "<text x=\"%d\" y=\"%d\">In a network all reach each other unless a rule "
		     "denies it; what has no arrow is "
		     "denied.</text>\n</svg>\n",
		     MARGIN, height - 14);
}
