# Runs a service and several copies of a program that use it, on Windows:
#
#   .\scripts\run-workers.ps1 -Workers 3 -Port 5000 python app.py
#
# It has not been run on Windows yet. `embedserve run --help` describes what the program gets.
param(
    [int] $Workers = 3,
    [int] $Port = 5000,
    [Parameter(Mandatory, ValueFromRemainingArguments)] [string[]] $Command
)

$embedserve = Join-Path $PSScriptRoot "..\.venv\Scripts\embedserve.exe"
if (-not (Test-Path $embedserve)) {
    $embedserve = "embedserve"
}
& $embedserve run --workers $Workers --port $Port -- @Command
exit $LASTEXITCODE
