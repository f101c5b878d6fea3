# SPDX-License-Identifier: Apache-2.0
# What configure scripts and start scripts consist of: substitutions, small pipes, here-documents, tests.
mkdir -p t && cd t || exit 1
n=0
while [ $n -lt 60 ]; do
	name=file$n
	cat >"$name" <<EOF
line one of $name
value=$((n * 17 % 23))
EOF
	value=$(sed -n 's/^value=//p' "$name" | tr -d '\n')
	case $value in
	1*) echo "$name" ;;
	*[05]) expr "$value" + 1 ;;
	esac
	if grep -q 'one' "$name" && [ -f "$name" ]; then
		(echo "$value" | cut -c1 >>../sums)
	fi
	n=$((n + 1))
done
find . -name 'file*' | sort | tail -n 3
sort ../sums | uniq -c | awk '{ s += $1 * ($2 + 1) } END { print s }'
rm -rf ../t ../sums
