# SPDX-License-Identifier: Apache-2.0
# Counts words and what stands between them.
use strict;
my (%seen, $numbers, $links);
while (<>) {
	last if $. > 60000;
	$seen{lc $1}++ while /\b([A-Za-z]{3,})\b/g;
	$numbers += $1 while /=\s*(\d+)/g;
	$links++ if /^\s*(\w+)->(\w+)\s*=.*;$/;
	s/(\w)(\w+)/$2$1/g;
}
my @top = (sort { $seen{$b} <=> $seen{$a} || $a cmp $b } keys %seen)[0 .. 19];
print join(' ', map { "$_=$seen{$_}" } @top), " $numbers ", $links // 0, "\n";
